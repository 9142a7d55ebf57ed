from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from grootv.checkpoint import load_checkpoint_file
from grootv.engine.hooks.checkpoint import AtomicLocalBackend, CheckpointHook


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, *inputs, mode='tensor'):
        return [None] if mode == 'predict' else dict(loss=self.weight.sum())


class Scores(Evaluator):
    """Gives the scores it was made with, one an epoch."""

    def __init__(self, values: tuple[float, ...]):
        super().__init__([])
        self.values = iter(values)

    def evaluate(self, size):
        return {'acc': next(self.values)}


def train(work_dir: Path, hook: CheckpointHook, *values: float, name: str) -> None:
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
        experiment_name=name,
        log_level='ERROR',
    ).train()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == '.pth'}


@pytest.fixture
def history(monkeypatch) -> dict[str, set[str]]:
    """By checkpoint: the others that were there while it was first written."""
    seen: dict[str, set[str]] = {}
    put = AtomicLocalBackend.put

    def spy(self, obj, filepath):
        seen.setdefault(Path(filepath).name, names(Path(filepath).parent))
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', spy)
    return seen


def test_the_newest_and_the_best_stay(tmp_path, request):
    hook = CheckpointHook(interval=1, max_keep_ckpts=2, save_best='acc', rule='greater')
    train(tmp_path, hook, 0.1, 0.9, 0.2, 0.3, name=request.node.name)
    assert names(tmp_path) == {'epoch_3.pth', 'epoch_4.pth', 'best_acc_epoch_2.pth'}
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_4.pth')


def test_nothing_is_given_up_before_its_successor_is_written(tmp_path, history, request):
    hook = CheckpointHook(interval=1, max_keep_ckpts=1, save_best='acc', rule='greater')
    train(tmp_path, hook, 0.1, 0.9, name=request.node.name)
    assert names(tmp_path) == {'epoch_2.pth', 'best_acc_epoch_2.pth'}
    assert history['epoch_2.pth'] == {'epoch_1.pth', 'best_acc_epoch_1.pth'}
    assert history['best_acc_epoch_2.pth'] == {'epoch_2.pth', 'best_acc_epoch_1.pth'}


def test_without_an_improvement_the_best_one_stays(tmp_path, request):
    hook = CheckpointHook(interval=1, save_best='acc', rule='greater')
    train(tmp_path, hook, 0.9, 0.1, 0.2, name=request.node.name)
    assert names(tmp_path) == {
        'epoch_1.pth',
        'epoch_2.pth',
        'epoch_3.pth',
        'best_acc_epoch_1.pth',
    }
    assert load_checkpoint_file(tmp_path / 'best_acc_epoch_1.pth')['meta']['epoch'] == 1


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    target = tmp_path / 'epoch_1.pth'
    backend = AtomicLocalBackend()
    backend.put(b'old', target)

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.fsync', interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new and longer', target)
    assert target.read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']
