"""Checkpoints that survive an interruption at any moment."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from grootv.files import write_atomically
from grootv.registry import HOOKS


class AtomicLocalBackend(LocalBackend):
    """A file appears whole or not at all, also after a power failure."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with write_atomically(filepath) as draft, draft.open('wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())


register_backend('atomic', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's hook, which never removes an older file before the newer one is complete.

    The base class overwrites in place, removes the file that ``max_keep_ckpts`` or ``save_best``
    makes superfluous first and writes afterwards. Here the order is reversed, and files on a local
    disk appear at once.

    Args:
        **kwargs: As for :class:`mmengine.hooks.CheckpointHook`.
    """

    _progress: dict[str, int] = {}  # epochs and iterations of the checkpoint that is being written

    def before_train(self, runner: Runner) -> None:
        local = '://' not in str(self.out_dir or '')
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='atomic')
        super().before_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # FlexibleRunner counts on from what it has written into the same dict before.
        checkpoint['meta'].update(self._progress)

    def after_train_epoch(self, runner: Runner) -> None:
        self._progress = dict(epoch=runner.epoch + 1, iter=runner.iter)
        super().after_train_epoch(runner)
        self._progress = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._progress = dict(epoch=runner.epoch, iter=runner.iter + 1)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self._progress = {}

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        self._progress = dict(epoch=runner.epoch, iter=runner.iter)
        super().after_val_epoch(runner, metrics)
        self._progress = {}

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        superfluous = None
        if self.max_keep_ckpts > 0:
            kept = self.keep_ckpt_ids
            if len(kept) == self.max_keep_ckpts and kept[-1] != step:
                superfluous = kept.popleft()  # the base class finds room and removes nothing
        super()._save_checkpoint_with_step(runner, step, meta)
        if superfluous is not None:
            self._remove(runner, self.filename_tmpl.format(superfluous))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best or len(self.key_indicators) > 1:
            super()._save_best_checkpoint(runner, metrics)
            return
        previous, self.best_ckpt_path = self.best_ckpt_path, None
        super()._save_best_checkpoint(runner, metrics)
        if self.best_ckpt_path is None:
            self.best_ckpt_path = previous
        elif previous not in (None, self.best_ckpt_path):
            self._remove(runner, os.path.basename(previous))

    def _remove(self, runner: Runner, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if runner.rank == 0 and self.file_backend.isfile(path):
            self.file_backend.remove(path)
