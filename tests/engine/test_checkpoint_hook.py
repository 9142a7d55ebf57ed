import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from grootv.checkpoint import load_checkpoint_file
from grootv.engine import CheckpointKeysHook, ResumeHook
from grootv.engine.hooks.checkpoint import AtomicLocalBackend, CheckpointHook
from grootv.errors import UserError
from tests.tools.tiny_run import load_tool


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, *inputs, mode='tensor'):
        return [None] if mode == 'predict' else dict(loss=self.weight.sum())


class Scores(Evaluator):
    """Gives one score an iteration, which it knows by the weight."""

    def __init__(self, values: tuple[float, ...], model: Model):
        super().__init__([])
        self.values, self.model = values, model

    def evaluate(self, size):
        return {'acc': self.values[round((1 - self.model.weight.item()) / 0.1) - 1]}


def train(
    work_dir: Path, hook: CheckpointHook, *values: float, loop: dict | None = None, resume: str | None = None
) -> Runner:
    """A run whose epochs have one iteration each, or one by iterations."""
    data = dict(dataset=[torch.zeros(1)] * 2, sampler=dict(type='DefaultSampler'), batch_size=2)
    sampler = 'InfiniteSampler' if loop and not loop['by_epoch'] else 'DefaultSampler'
    runner = Runner(
        model=(model := Model()),
        work_dir=str(work_dir),
        train_dataloader=dict(data, sampler=dict(type=sampler)),
        train_cfg=loop or dict(by_epoch=True, max_epochs=len(values)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=data,
        val_cfg=dict(),
        val_evaluator=Scores(values, model),
        default_hooks=dict(checkpoint=hook),
        load_from=resume,
        resume=resume is not None,
        experiment_name=uuid.uuid4().hex,
        log_level='ERROR',
    )
    if resume:
        runner.register_hook(ResumeHook())
    runner.train()
    return runner


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


EPOCHS, ITERATIONS = dict(by_epoch=True, max_epochs=4), dict(by_epoch=False, max_iters=4)


@pytest.mark.parametrize(
    'loop, scores',
    [
        (dict(EPOCHS, val_interval=1), (0.3, 0.1, 0.5, 0.2)),
        (dict(EPOCHS, val_interval=1), (0.1, 0.2, 0.3, 0.4)),
        (dict(EPOCHS, val_interval=3), (0.1, 0.2, 0.3, 0.4)),
        (dict(ITERATIONS, val_interval=1), (0.1, 0.3, 0.2, 0.5)),
        (dict(ITERATIONS, val_interval=2), (0.4, 0.3, 0.2, 0.1)),
    ],
)
def test_a_run_killed_at_any_file_ends_with_the_files_of_one_never_stopped(
    tmp_path, monkeypatch, loop, scores
):
    latest_checkpoint = load_tool('train.py').latest_checkpoint

    def run(folder: Path, **kwargs) -> Runner:
        hook = CheckpointHook(1, loop['by_epoch'], max_keep_ckpts=2, save_best='acc', rule='greater')
        return train(folder, hook, *scores, loop=loop, **kwargs)

    steps = 0
    kill_at = None

    def counted(function):
        def wrapper(*args):
            nonlocal steps
            steps += 1
            if steps == kill_at:
                raise KeyboardInterrupt
            return function(*args)

        return wrapper

    for name in ('put', 'remove'):
        monkeypatch.setattr(AtomicLocalBackend, name, counted(getattr(AtomicLocalBackend, name)))
    whole = run(tmp_path / 'whole')
    expected, count = names(tmp_path / 'whole'), steps
    assert len([name for name in expected if 'best' in name]) == 1 and count > 6
    for kill_at in range(1, count + 1):
        steps, folder = 0, tmp_path / str(kill_at)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
        resume = latest_checkpoint(str(folder))
        assert resume or kill_at < 3
        found = run(folder, resume=resume)
        assert names(folder) == expected, f'stopped at {kill_at} of {count}'
        assert found.message_hub.get_info('best_score') == whole.message_hub.get_info('best_score')


def test_metric_that_the_validation_does_not_give_is_named(tmp_path):
    with pytest.raises(UserError, match=r'save_best=mIoU names no metric of .*, which gives acc: set it'):
        train(tmp_path, CheckpointHook(interval=1, save_best='mIoU'), 0.1)
    assert names(tmp_path) == {'epoch_1.pth'}


@pytest.mark.parametrize('metric, rule', [('coco/bbox_mAP', 'greater'), ('perplexity', 'less')])
def test_rule_of_a_metric_follows_from_its_name(metric, rule):
    assert CheckpointHook(save_best=metric).rules == [rule]


def test_score_of_another_metric_is_forgotten(tmp_path):
    train(tmp_path, CheckpointHook(interval=1, save_best='acc', rule='less'), 0.1)
    rename = CheckpointHook(interval=1, save_best='top', rule='greater')
    resume = str(tmp_path / 'epoch_1.pth')
    with pytest.raises(UserError, match='which gives acc'):
        train(tmp_path, rename, 0.1, 0.2, resume=resume)
    assert rename.best_ckpt_path is None and names(tmp_path) == {
        'epoch_1.pth',
        'epoch_2.pth',
        'best_acc_epoch_1.pth',
    }


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    target = tmp_path / 'epoch_1.pth'
    backend = AtomicLocalBackend()
    backend.put(b'old', target)
    monkeypatch.setattr('os.fsync', lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backend.put(b'new and longer', target)
    assert target.read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']


def test_rests_of_a_killed_run_are_removed_when_the_next_begins(tmp_path):
    rest = tmp_path / f'.epoch_7.pth.{2**22 + 1}.tmp'  # above any process number of Linux
    rest.touch()
    train(tmp_path, CheckpointHook(interval=1), 0.1)
    assert not rest.exists()


def test_average_of_a_checkpoint_is_resumed_but_not_fine_tuned():
    model = nn.Linear(1, 1)
    runner = SimpleNamespace(model=model, visualizer=SimpleNamespace(dataset_meta=None))
    for strict in (True, False):
        checkpoint = dict(state_dict=model.state_dict(), ema_state_dict={})
        CheckpointKeysHook(strict).after_load_checkpoint(runner, checkpoint)
        assert ('ema_state_dict' in checkpoint) == strict


@pytest.mark.parametrize(
    'trained, fault',
    [
        (('dog', 'cat'), 'refused'),
        (('bird', 'dog'), 'warned'),
        (('cat', 'dog'), None),
        (('cat',), None),  # a matter of the weights
        (None, None),
    ],
)
def test_names_of_the_training_in_another_order_are_refused(monkeypatch, trained, fault):
    said: list[str] = []
    monkeypatch.setattr('grootv.checkpoint.warn', said.append)
    model = Model()
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=trained)))
    runner = SimpleNamespace(
        model=model, visualizer=SimpleNamespace(dataset_meta=dict(classes=('cat', 'dog')))
    )
    if fault == 'refused':
        with pytest.raises(UserError, match='names from class 0 on, dog, cat, than the data have, cat, dog:'):
            CheckpointKeysHook().after_load_checkpoint(runner, checkpoint)
    else:
        CheckpointKeysHook().after_load_checkpoint(runner, checkpoint)
    assert len(said) == (fault == 'warned')
