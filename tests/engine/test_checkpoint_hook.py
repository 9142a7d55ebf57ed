from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from grootv.checkpoint import load_checkpoint_file
from grootv.engine import CheckpointKeysHook
from grootv.engine.hooks.checkpoint import AtomicLocalBackend, CheckpointHook


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, *inputs, mode='tensor'):
        return [None] if mode == 'predict' else dict(loss=self.weight.sum())


class Scores(Evaluator):
    """Gives one score an epoch."""

    def __init__(self, values: tuple[float, ...]):
        super().__init__([])
        self.values = iter(values)

    def evaluate(self, size):
        return {'acc': next(self.values)}


def train(work_dir: Path, hook: CheckpointHook, *values: float) -> None:
    data = dict(dataset=[torch.zeros(1)] * 2, sampler=dict(type='DefaultSampler'), batch_size=2)
    Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader=data,
        train_cfg=dict(by_epoch=True, max_epochs=len(values)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=data,
        val_cfg=dict(),
        val_evaluator=Scores(values),
        default_hooks=dict(checkpoint=hook),
        experiment_name=str(work_dir),
        log_level='ERROR',
    ).train()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == '.pth'}


@pytest.mark.parametrize(
    ('kept', 'scores', 'expected'),
    [
        (2, (0.1, 0.9, 0.2, 0.3), {'epoch_3.pth', 'epoch_4.pth', 'best_acc_epoch_2.pth'}),
        (-1, (0.9, 0.1), {'epoch_1.pth', 'epoch_2.pth', 'best_acc_epoch_1.pth'}),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, kept, scores, expected):
    train(tmp_path, CheckpointHook(interval=1, max_keep_ckpts=kept, save_best='acc', rule='greater'), *scores)
    assert names(tmp_path) == expected
    assert (tmp_path / 'last_checkpoint').read_text().endswith(f'epoch_{len(scores)}.pth')
    (best,) = tmp_path.glob('best*')
    assert load_checkpoint_file(best)['meta']['epoch'] == 1 + scores.index(0.9)


def test_nothing_is_deleted_before_its_successor_is_written(tmp_path, monkeypatch):
    seen: dict[str, set[str]] = {}  # by checkpoint: the others that were there while it was first written
    put = AtomicLocalBackend.put

    def spy(self, obj, filepath):
        seen.setdefault(Path(filepath).name, names(Path(filepath).parent))
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', spy)
    train(tmp_path, CheckpointHook(interval=1, max_keep_ckpts=1, save_best='acc', rule='greater'), 0.1, 0.9)
    assert names(tmp_path) == {'epoch_2.pth', 'best_acc_epoch_2.pth'}
    assert seen['epoch_2.pth'] == {'epoch_1.pth', 'best_acc_epoch_1.pth'}
    assert seen['best_acc_epoch_2.pth'] == {'epoch_2.pth', 'best_acc_epoch_1.pth'}


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    target = tmp_path / 'epoch_1.pth'
    backend = AtomicLocalBackend()
    backend.put(b'old', target)
    monkeypatch.setattr('os.fsync', lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backend.put(b'new and longer', target)
    assert target.read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']


def test_average_of_a_checkpoint_is_resumed_but_not_fine_tuned():
    model = nn.Linear(1, 1)
    runner = SimpleNamespace(model=model, visualizer=SimpleNamespace(dataset_meta=None))
    for strict in (True, False):
        checkpoint = dict(state_dict=model.state_dict(), ema_state_dict={})
        CheckpointKeysHook(strict).after_load_checkpoint(runner, checkpoint)
        assert ('ema_state_dict' in checkpoint) == strict
