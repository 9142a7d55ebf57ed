"""The recipes say what the paper states and the READMEs decide; the demos use their parts."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from . import parts

WIDTHS = dict(tiny=80, small=96, base=128, pico=16)
DROP_PATH = dict(tiny=0.2, small=0.3, base=0.4)  # fine-tuned
IMAGENET_DROP_PATH = dict(tiny=0.1, small=0.3, base=0.5)


# Every config ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', parts.CONFIGS)
def test_what_all_configs_promise(name):
    config = parts.load(name)
    assert parts.count(parts.model_of(name)) > 1e5
    assert config.default_hooks.checkpoint.type == 'grootv.CheckpointHook'
    assert config.default_hooks.epoch_seed.type == 'grootv.EpochSeedHook'
    assert config.train_dataloader.persistent_workers is False
    # An image that cannot be read is named.
    assert all(pipeline[0].type == 'grootv.LoadImageFromFile' for pipeline in parts.pipelines(config))
    batch, devices = config.train_dataloader.batch_size, 1 if 'demo' in config.filename else 8
    assert config.auto_scale_lr == dict(base_batch_size=devices * batch, enable=False)

    classifier = config.default_scope == 'mmpretrain'
    preprocessor = config.data_preprocessor if classifier else config.model.data_preprocessor
    assert preprocessor['to_rgb' if classifier else 'bgr_to_rgb']
    assert [round(value / 255, 3) for value in preprocessor.mean] == [0.485, 0.456, 0.406]
    assert [round(value / 255, 3) for value in preprocessor.std] == [0.229, 0.224, 0.225]
    if config.default_scope == 'mmdet':
        assert preprocessor.pad_size_divisor == (1 if name == parts.DINO else 32)


@pytest.mark.parametrize('name', parts.CONFIGS)
def test_a_pretrained_backbone_comes_from_a_config_of_its_size(name):
    config = parts.load(name)
    pretrained = config.model.backbone.get('init_cfg')
    if pretrained is None:
        assert config.default_scope == 'mmpretrain'
        return
    folder, file = pretrained.checkpoint.removeprefix('work_dirs/').split('/')
    source = parts.load(folder)
    assert file == f'epoch_{source.train_cfg.max_epochs}.pth'
    assert pretrained.type == 'Pretrained' and pretrained.prefix == 'backbone.'
    assert source.model.backbone.arch == config.model.backbone.arch


# The networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', parts.RECIPES)
def test_size_of_the_backbone_and_its_maps(name):
    size, model = re.search('tiny|small|base', name)[0], parts.load(name).model
    maps = [WIDTHS[size] * 2**stage for stage in range(4)]
    assert model.backbone.arch == size
    if name in parts.IMAGENET:
        assert model.backbone.drop_path_rate == IMAGENET_DROP_PATH[size]
        assert model.head.in_channels == maps[-1]
        return
    assert model.backbone.drop_path_rate == DROP_PATH[size]
    stages = (1, 2, 3) if name in parts.BOXES_ONLY else (0, 1, 2, 3)
    assert model.backbone.out_indices == stages
    taker = model.neck if 'neck' in model else model.decode_head
    assert taker.in_channels == [maps[stage] for stage in stages]
    if 'auxiliary_head' in model:
        assert (model.auxiliary_head.in_index, model.auxiliary_head.in_channels) == (2, maps[2])


@pytest.mark.parametrize('name', parts.CONFIGS)
def test_classes_of_all_heads(name):
    data = dict(classification=1000, detection=80, segmentation=150, demo=11 if 'upernet' in name else 10)
    found = re.findall(r'"num_classes": (\d+)', json.dumps(parts.load(name).model, default=str))
    assert set(map(int, found)) == {data[parts.task_of(name)]}
    if name == parts.MASK2FORMER:
        weights = parts.load(name).model.decode_head.loss_cls.class_weight
        assert weights == [1.0] * 150 + [0.1]  # the last is "nothing"


def test_the_heads_of_upernet():
    heads = [parts.load(parts.UPERNET).model[head] for head in ('decode_head', 'auxiliary_head')]
    found = [(head.type, head.channels, head.loss_decode.loss_weight) for head in heads]
    assert found == [('UPerHead', 512, 1.0), ('FCNHead', 256, 0.4)]


@pytest.mark.parametrize('name', parts.SEGMENTATION)
def test_batch_norms_are_joined_by_the_runner_alone(name):
    """A SyncBatchNorm in the model itself cannot train on several processes without GPUs."""
    assert parts.load(name).sync_bn == 'torch'
    modules = list(parts.model_of(name).modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in modules)
    assert any(isinstance(module, nn.BatchNorm2d) for module in modules) == (name != parts.MASK2FORMER)


def test_the_demo_uses_the_parts_that_imagenet_uses():
    demo, tiny = (
        (
            (config.model.type, config.model.head.type, config.train_dataloader.dataset.type),
            (config.val_evaluator, config.optim_wrapper.paramwise_cfg),
        )
        for config in map(parts.load, (parts.DIGITS, parts.TINY))
    )
    assert demo == tiny
    assert 3e5 <= parts.count(parts.model_of(parts.DIGITS)) <= 1e6


# The optimizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', parts.RECIPES)
def test_optimizer(name):
    config = parts.load(name)
    settings = {
        'classification': (1e-3, 0.05, dict(max_norm=5.0), 128),
        'detection': (1e-4, 0.05, None, 2),
        'segmentation': (6e-5, 0.01, None, 2),
        parts.DINO: (1e-4, 1e-4, dict(max_norm=0.1, norm_type=2), 2),
        parts.MASK2FORMER: (1e-4, 0.05, dict(max_norm=0.01), 2),
        parts.FPN: (2e-4, 1e-4, None, 4),
    }
    lr, decay, clip, batch = settings.get(name, settings[parts.task_of(name)])
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=decay, betas=(0.9, 0.999))
    assert config.optim_wrapper.get('clip_grad') == clip
    assert config.train_dataloader.batch_size == batch
    assert config.optim_wrapper.type == 'OptimWrapper'  # mixed precision is off
    assert 'constructor' not in config.optim_wrapper  # and so is the decay from layer to layer


@pytest.mark.parametrize('name', parts.RECIPES)
def test_rate_and_weight_decay_of_every_parameter(name):
    """Biases and norms do not decay; DINO's and Mask2Former's backbones learn at a tenth of the rate."""
    config, model = parts.load(name), parts.model_of(name)
    optimizer, spared = config.optim_wrapper.optimizer, parts.without_decay(model)
    assert {'backbone.stem.norm1.weight', 'backbone.stages.2.blocks.8.ssm.D'} <= spared
    if name == parts.MASK2FORMER:
        spared |= {f'decode_head.{part}.weight' for part in ('query_embed', 'query_feat', 'level_embed')}
    if name == parts.DINO:
        spared = set()
    for parameter, group in parts.parameter_groups(config, model).items():
        assert group['weight_decay'] == (0.0 if parameter in spared else optimizer.weight_decay), parameter
        slow = name in (parts.DINO, parts.MASK2FORMER) and parameter.startswith('backbone.')
        assert group['lr'] == pytest.approx(optimizer.lr * (0.1 if slow else 1)), parameter


def test_the_switch_exempts_a_log_and_the_step_bias():
    config, model = copy.deepcopy(parts.load(parts.TINY)), parts.model_of(parts.TINY)
    for rule in config.optim_wrapper.paramwise_cfg.custom_keys.values():
        rule.decay_mult = 0.0
    exempt = {
        name for name, group in parts.parameter_groups(config, model).items() if group['weight_decay'] == 0
    }
    names = {name for name, _ in model.named_parameters() if name.endswith(('.A_log', '.dt_proj.bias'))}
    assert names and exempt == parts.without_decay(model) | names


# The schedules -----------------------------------------------------------------------------------


def rates(config: Config, per_epoch: int = 1, shorter: int = 1) -> np.ndarray:
    """The learning rate of every iteration, ``per_epoch`` an epoch; a run of iterations is shortened."""
    train = config.train_cfg
    length = train['max_epochs'] * per_epoch if 'max_epochs' in train else train['max_iters'] // shorter
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    defaults, schedules = dict(optimizer=optimizer, epoch_length=per_epoch), []
    for cfg in config.param_scheduler:
        cfg = dict(cfg, begin=cfg.get('begin', 0) // shorter)
        cfg['end'] = cfg['end'] // shorter if 'end' in cfg else train.get('max_epochs')
        schedules.append(PARAM_SCHEDULERS.build(cfg, default_args=defaults))
    found = []
    for iteration in range(1, length + 1):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for schedule in schedules:
            if not schedule.by_epoch or iteration % per_epoch == 0:
                schedule.step()
    return np.array(found)


@pytest.mark.parametrize('name', parts.IMAGENET)
def test_rates_on_imagenet(name):
    config = parts.load(name)
    assert config.train_cfg == dict(by_epoch=True, max_epochs=300, val_interval=1)
    cosine = 0.01 + 0.99 * (1 + np.cos(np.pi * np.arange(3000) / 3000)) / 2
    expected = 1e-3 * np.concatenate([np.linspace(1e-3, 1, 200), cosine[200:]])
    found = rates(config, per_epoch=10)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found[[200, 1600, 2999]], [9.892e-4, 4.53e-4, 1e-5], rtol=1e-3)
    averages = [1 - hook.momentum for hook in config.custom_hooks if hook.type == 'EMAHook']
    assert averages == ([] if 'strategy' in config else [0.9999])


@pytest.mark.parametrize('name', parts.DETECTION)
def test_rates_on_coco(name):
    config = parts.load(name)
    warm, steps, epochs = (1000, (27, 33), 36) if 'ms-3x' in name else (500, (8, 11), 12)
    if name == parts.DINO:
        warm, steps = 0, (11,)
    assert config.train_cfg == dict(by_epoch=True, max_epochs=epochs, val_interval=1)
    expected = np.full(200 * epochs, 1e-4)
    expected[:warm] *= np.linspace(1e-3, 1, warm)
    for step in steps:
        expected[200 * step :] /= 10
    np.testing.assert_allclose(rates(config, per_epoch=200), expected, rtol=1e-6)
    assert config.train_dataloader.dataset.filter_cfg == dict(filter_empty_gt=name != parts.DINO, min_size=32)


@pytest.mark.parametrize('name', parts.SEGMENTATION)
def test_rates_on_ade20k(name):
    config = parts.load(name)
    length = 40_000 if name == parts.FPN else 160_000
    assert config.train_cfg == dict(type='IterBasedTrainLoop', max_iters=length, val_interval=8000)
    expected = np.linspace(1, 0, length // 100) ** 0.9
    if 'upernet' in name:
        expected = np.concatenate([np.linspace(1e-6, 1, 16), np.linspace(1, 0, 1584)])
    lr = config.optim_wrapper.optimizer.lr
    np.testing.assert_allclose(rates(config, shorter=100), lr * expected, rtol=1e-6, atol=1e-12)
    checkpoint = config.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.save_best) == (False, 'mIoU')
    # A best checkpoint is as good a place to resume from as any other.
    assert checkpoint.interval == config.train_cfg.val_interval
    assert config.log_processor.by_epoch is config.default_hooks.logger.log_metric_by_epoch is False
