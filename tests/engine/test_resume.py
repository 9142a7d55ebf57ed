"""A resumed run has the schedule that its user asked for."""

from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from grootv.checkpoint import explain_loading, install_safe_loader
from grootv.engine import CheckpointHook, ResumeHook
from grootv.errors import UserError


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))

    def forward(self, *inputs, mode='tensor'):
        return dict(loss=(self.weight.sum() + self.bias).square().sum())


class Rates(CheckpointHook):
    """Notes the rate of every iteration."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rates: dict[int, list[float]] = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        self.rates[runner.iter] = [group['lr'] for group in groups]


WARM_UP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4)
COSINE = dict(type='CosineAnnealingLR', eta_min=1e-3, by_epoch=True, begin=1, convert_to_iter_based=True)
STEPS = dict(type='MultiStepLR', by_epoch=True, milestones=[1, 3], gamma=0.1)
ADAM = dict(type='AdamW', lr=0.1, weight_decay=0.05)
SPARE = dict(custom_keys=dict(bias=dict(lr_mult=0.5)))


def train(
    folder: Path, epochs: int = 2, resume: Path | None = None, choice: str | None = None, **settings
) -> dict[int, list[float]]:
    """Rates by iteration of a run with three iterations an epoch."""
    hook = Rates(interval=1)
    settings = dict(optimizer=ADAM, schedule=[WARM_UP, COSINE], paramwise_cfg=SPARE) | settings
    optimizer = dict(optimizer=settings['optimizer'], paramwise_cfg=settings['paramwise_cfg'])
    runner = Runner(
        model=Model(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=[torch.zeros(1)] * 6, sampler=dict(type='DefaultSampler'), batch_size=2
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=optimizer,
        param_scheduler=settings['schedule'],
        auto_scale_lr=settings.get('scale'),
        default_hooks=dict(checkpoint=hook),
        load_from=resume and str(resume),
        resume=resume is not None,
        experiment_name=f'{folder}{choice}{len(list(folder.parent.iterdir()))}',
        log_level='ERROR',
    )
    explain_loading(runner)
    if resume:
        runner.register_hook(ResumeHook(choice))
    runner.train()
    return hook.rates


@pytest.mark.parametrize(
    'schedule', [[WARM_UP, COSINE], [WARM_UP, STEPS], None], ids=['cosine', 'steps', 'none']
)
def test_longer_schedule_continues_as_if_it_had_been_there_from_the_start(tmp_path, schedule):
    train(tmp_path / 'short', 2, schedule=schedule)
    changed = dict(schedule=schedule, optimizer=dict(ADAM, lr=0.2, weight_decay=0.1))
    expected = train(tmp_path / 'long', 5, **changed)
    found = train(tmp_path / 'new', 5, tmp_path / 'short/epoch_2.pth', 'config', **changed)
    assert list(found) == list(range(6, 15))
    for iteration, rates in found.items():
        assert rates == pytest.approx(expected[iteration], rel=1e-9), iteration
    last = torch.load(tmp_path / 'new/epoch_5.pth', weights_only=False)
    assert {group['weight_decay'] for group in last['optimizer']['param_groups']} == {0.1}
    # And its own checkpoints are resumed without a question.
    again = train(tmp_path / 'again', 5, tmp_path / 'new/epoch_4.pth', **changed)
    assert again == {iteration: rates for iteration, rates in found.items() if iteration >= 12}


SCALE = dict(enable=True, base_batch_size=4)


@pytest.mark.parametrize(
    'settings, text',
    [
        (dict(epochs=5), 'param_scheduler.1.T_max 3 instead of 12, param_scheduler.1.end 6 instead of 15'),
        (dict(optimizer=dict(ADAM, lr=0.2)), 'optim_wrapper.optimizer.lr 0.1 instead of 0.2'),
        (dict(optimizer=dict(ADAM, weight_decay=0.1)), 'optimizer.weight_decay 0.05 instead of 0.1'),
        (dict(optimizer=dict(ADAM, betas=(0.9, 0.95))), 'betas (0.9, 0.999) instead of (0.9, 0.95)'),
        (dict(scale=SCALE), 'optim_wrapper.optimizer.lr 0.1 instead of 0.05'),
        (dict(schedule=[WARM_UP]), '(2 instead of 1 in param_scheduler'),
        (dict(schedule=[WARM_UP, STEPS]), '(param_scheduler.1 is another than MultiStepLR'),
        (dict(schedule=[dict(WARM_UP, end=5), COSINE]), 'param_scheduler.0.end 4 instead of 5'),
        (dict(schedule=None), '(2 instead of 0 in param_scheduler'),
    ],
)
def test_other_schedule_is_refused_until_one_is_chosen(tmp_path, settings, text):
    train(tmp_path / 'run')
    with pytest.raises(UserError) as error:
        train(tmp_path / 'resumed', resume=tmp_path / 'run/epoch_1.pth', **settings)
    assert text in str(error.value) and 'add --resume-schedule config' in str(error.value)


def test_old_schedule_is_kept_if_it_is_chosen(tmp_path):
    rates = train(tmp_path / 'run')
    args = dict(resume=tmp_path / 'run/epoch_1.pth', choice='checkpoint')
    longer = train(tmp_path / 'longer', 4, **args)
    assert [longer[3], longer[5]] == [rates[3], rates[5]]
    assert longer[6] == longer[11]  # where the shorter run has ended
    with pytest.raises(UserError, match=r'param_scheduler.1 is another than MultiStepLR'):
        train(tmp_path / 'other', schedule=[WARM_UP, STEPS], **args)


def test_schedule_that_follows_a_metric_is_not_replayed(tmp_path):
    plateau = [dict(type='ReduceOnPlateauLR', monitor='loss', patience=1)]
    train(tmp_path / 'run', schedule=plateau)
    args = dict(schedule=plateau, resume=tmp_path / 'run/epoch_1.pth')
    train(tmp_path / 'same', **args)
    args |= dict(optimizer=dict(ADAM, lr=0.2), choice='config')
    with pytest.raises(UserError, match='ReduceOnPlateauLR follows a metric'):
        train(tmp_path / 'other', **args)


@pytest.mark.parametrize(
    'settings',
    [
        dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        dict(paramwise_cfg=None),
    ],
)
@pytest.mark.parametrize('choice', [None, 'config', 'checkpoint'])
def test_another_optimizer_is_refused(tmp_path, settings, choice):
    train(tmp_path / 'run')
    with pytest.raises(UserError, match='has an optimizer state that does not fit'):
        train(tmp_path / 'resumed', resume=tmp_path / 'run/epoch_1.pth', choice=choice, **settings)


def damage(checkpoint: dict, *place_and_value) -> dict:
    *place, name, value = place_and_value
    node = checkpoint
    for key in place:
        node = node[key]
    node[name] = value
    return checkpoint


@pytest.mark.parametrize(
    'place, text',
    [
        (('optimizer', 'state', 3), 'has an optimizer state that does not fit'),
        (('optimizer', 'state', 0, 3), 'has an optimizer state that does not fit'),
        (('optimizer', 'state', 0, 'exp_avg', torch.ones(7)), 'has an optimizer state that does not fit'),
        (('optimizer', 'state', 0, 'step', 'x'), 'has an optimizer state that does not fit'),
        (('optimizer', 'param_groups', 0, 'lr', 'x'), 'has an optimizer state that does not fit'),
        (('param_schedulers', 0, 'last_step', 'x'), 'param_scheduler.0 is another than LinearLR'),
        (('param_schedulers', 1, '_last_value', []), 'param_scheduler.1 is another than CosineAnnealingLR'),
        (('optimizer', 'param_groups', [3]), 'has an optimizer state that does not fit'),
        (('optimizer', 'param_groups', 0, 'params', 3), 'has an optimizer state that does not fit'),
        (('param_schedulers', {}), '0 instead of 2 in param_scheduler'),
        (('param_schedulers', [3, 4]), 'param_scheduler.0 is another than LinearLR'),
        (('param_schedulers', 'x'), 'has a str as its param_schedulers'),
        (('message_hub', 3), 'has a int as its message_hub'),
        (('message_hub', {}), 'cannot be loaded (AssertionError'),
        (('message_hub', 'runtime_info', {1: 2}), 'has damaged notes of the run'),
        (('message_hub', 'runtime_info', 'keep_ckpt_ids', 'x'), 'has damaged notes of the run'),
        (('message_hub', 'runtime_info', 'best_score', 'x'), 'has damaged notes of the run'),
        (('meta', 'x'), 'has a str as its meta'),
        (('meta', 'epoch', '1'), 'has no number of epochs and iterations'),
        (('state_dict', [3]), 'has a list as its state_dict'),
        (('state_dict', 'weight', 3), 'has a int as its weight weight'),
        (('state_dict', 'weight', torch.ones(2, device='meta')), 'has a meta tensor as its weight weight'),
        (('state_dict', 1, torch.ones(2)), 'has a weight named 1, which is no text'),
    ],
)
def test_damaged_part_is_named(tmp_path, place, text):
    train(tmp_path / 'run')
    install_safe_loader()
    checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    torch.save(damage(checkpoint, *place), tmp_path / 'bad.pth')
    with pytest.raises(UserError) as error:
        train(tmp_path / 'resumed', resume=tmp_path / 'bad.pth')
    assert text in str(error.value) and str(tmp_path / 'bad.pth') in str(error.value)


@pytest.mark.parametrize('part', ['optimizer', 'meta', 'message_hub', 'all'])
def test_checkpoint_that_cannot_continue_is_refused(tmp_path, part):
    train(tmp_path / 'run')
    checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    checkpoint.pop(part, None)
    torch.save(checkpoint['state_dict'] if part == 'all' else checkpoint, tmp_path / 'part.pth')
    with pytest.raises(UserError, match=r'has no .*, so that --resume would start the schedule again'):
        train(tmp_path / 'resumed', resume=tmp_path / 'part.pth')
