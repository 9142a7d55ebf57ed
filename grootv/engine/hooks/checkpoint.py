"""Checkpoints that survive an interruption at any moment."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from grootv.errors import UserError
from grootv.files import remove_leftovers, write_atomically
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
    disk appear at once. A checkpoint names the files that it replaces, and a run that continues from it
    removes those that are still there.

    Args:
        **kwargs: As for :class:`mmengine.hooks.CheckpointHook`.
    """

    _default_less_keys = [*_CheckpointHook._default_less_keys, 'perplexity']
    _progress: dict[str, int] = {}  # epochs and iterations of the checkpoint that is being written
    _validated = False  # whether it is written after the validation

    def before_train(self, runner: Runner) -> None:
        local = '://' not in str(self.out_dir or '')
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='atomic')
        super().before_train(runner)
        if local and runner.rank == 0:
            remove_leftovers(Path(self.out_dir))
        self._remove_superseded(runner)
        if self.save_best and len(self.key_indicators) == 1:
            self._forget_other_metric(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # FlexibleRunner counts on from what it has written into the same dict before.
        checkpoint['meta'].update(self._progress, validated=self._validated)

    def after_train_epoch(self, runner: Runner) -> None:
        self._progress = dict(epoch=runner.epoch + 1, iter=runner.iter)
        super().after_train_epoch(runner)
        self._progress = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._progress = dict(epoch=runner.epoch, iter=runner.iter + 1)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self._progress = {}

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        self._progress, self._validated = dict(epoch=runner.epoch, iter=runner.iter), True
        super().after_val_epoch(runner, metrics)
        self._progress, self._validated = {}, False

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if self.max_keep_ckpts > 0:
            kept = self.keep_ckpt_ids
            if len(kept) == self.max_keep_ckpts and kept[-1] != step:
                # The base class finds room and removes nothing.
                self._supersede(runner, self.filename_tmpl.format(kept.popleft()))
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_superseded(runner)

    def _forget_other_metric(self, runner: Runner) -> None:
        """A resumed run may have compared another metric until now."""
        begin = f'best_{self.key_indicators[0]}_'.replace('/', '_')
        if self.best_ckpt_path and not os.path.basename(self.best_ckpt_path).startswith(begin):
            self.best_ckpt_path = None
            for name in ('best_ckpt', 'best_score'):
                runner.message_hub.pop_info(name, None)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        for name in self.key_indicators if self.save_best else ():
            if name not in metrics and name != 'auto':
                raise UserError(
                    f'default_hooks.checkpoint.save_best={name} names no metric of the validation, which '
                    f'gives {", ".join(metrics)}: set it to one of them'
                )
        if not self.save_best or len(self.key_indicators) > 1:
            super()._save_best_checkpoint(runner, metrics)
            return
        previous, self.best_ckpt_path = self.best_ckpt_path, None
        step = self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter)
        # A run that was stopped here may have left a best file of the same step.
        self._supersede(runner, f'best_{self.key_indicators[0]}_{step}'.replace('/', '_'))
        if previous is not None:
            self._supersede(runner, os.path.basename(previous))
        super()._save_best_checkpoint(runner, metrics)
        self.best_ckpt_path = self.best_ckpt_path or previous
        self._remove_superseded(runner)

    def _supersede(self, runner: Runner, name: str) -> None:
        hub = runner.message_hub
        hub.update_info('superseded', [*hub.runtime_info.get('superseded', []), name])

    def _remove_superseded(self, runner: Runner) -> None:
        """Remove the files that newer ones replace; the best one is not among them."""
        best = os.path.basename(getattr(self, 'best_ckpt_path', None) or '')
        for name in runner.message_hub.runtime_info.get('superseded', []):
            path = self.file_backend.join_path(self.out_dir, name)
            if name != best and runner.rank == 0 and self.file_backend.isfile(path):
                self.file_backend.remove(path)
        runner.message_hub.update_info('superseded', [])
