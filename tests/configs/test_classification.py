"""The recipe of ImageNet says what the published run did; the demo uses its parts."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from .parts import ROOT, build_model, parameter_groups, pipelines

IMAGENET = sorted((ROOT / 'configs/classification').glob('*.py'))
DIGITS = ROOT / 'configs/demo/grootv-pico_digits.py'


@pytest.fixture(scope='module', params=IMAGENET, ids=lambda path: path.stem)
def imagenet(request) -> Config:
    return Config.fromfile(request.param)


@pytest.mark.parametrize('path', [*IMAGENET, DIGITS], ids=lambda path: path.stem)
def test_the_pipelines_make_inputs_of_one_size(path, tmp_path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    Image.effect_noise((300, 260), 50).convert('RGB').save(tmp_path / 'image.png')
    for pipeline in pipelines(config):
        steps = Compose([TRANSFORMS.build(step) for step in pipeline])
        shapes = set()
        for _ in range(3):
            inputs = steps(dict(img_path=str(tmp_path / 'image.png'), gt_label=0))['inputs']
            views = inputs if isinstance(inputs, list) else [inputs]
            shapes.add(tuple(tuple(view.shape) for view in views))
        assert len(shapes) == 1


@pytest.mark.parametrize(
    'name, channels, rate, parameters',
    [
        ('tiny', 640, 0.1, 29_958_600),
        ('small', 768, 0.3, 51_331_624),
        ('base', 1024, 0.5, 90_597_096),
    ],
)
def test_each_size_is_the_published_one(name, channels, rate, parameters):
    config = Config.fromfile(ROOT / f'configs/classification/grootv-{name}_8xb128_in1k.py')
    assert config.model.backbone.arch == name
    assert config.model.backbone.drop_path_rate == rate
    assert config.model.head.in_channels == channels
    assert sum(p.numel() for p in build_model(config).parameters()) == parameters


def test_schedule(imagenet):
    optimizer = imagenet.optim_wrapper.optimizer
    assert optimizer.type == 'AdamW' and optimizer.betas == (0.9, 0.999)
    batch = 8 * imagenet.train_dataloader.batch_size
    assert batch == imagenet.auto_scale_lr.base_batch_size == 1024
    assert optimizer.lr == 5e-4 * batch / 512
    assert optimizer.weight_decay == 0.05
    assert imagenet.optim_wrapper.clip_grad == dict(max_norm=5.0)
    assert imagenet.optim_wrapper.type == 'OptimWrapper'  # mixed precision is off

    warm_up, cosine = imagenet.param_scheduler
    assert optimizer.lr * warm_up.start_factor == pytest.approx(5e-7 * batch / 512)
    assert optimizer.lr * cosine.eta_min_ratio == pytest.approx(5e-6 * batch / 512)
    assert warm_up.end == cosine.begin == 20
    assert warm_up.convert_to_iter_based and cosine.convert_to_iter_based
    assert imagenet.train_cfg == dict(by_epoch=True, max_epochs=300, val_interval=1)
    averages = [1 - hook.momentum for hook in imagenet.custom_hooks if hook.type == 'EMAHook']
    assert averages == ([] if 'strategy' in imagenet else [0.9999])


def test_rates_over_a_whole_run(imagenet, tmp_path):
    """Three hundred epochs of ten iterations."""
    weight = nn.Parameter(torch.zeros(1))
    runner = Runner(
        model=nn.Linear(1, 1),
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=[0] * 10, sampler=dict(type='DefaultSampler'), batch_size=1),
        train_cfg=imagenet.train_cfg,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        param_scheduler=imagenet.param_scheduler,
        default_hooks=dict(),
        experiment_name=f'{tmp_path.name}{id(weight)}',
        log_level='ERROR',
    )
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    schedules = runner.build_param_scheduler(runner.param_schedulers)
    rates = []
    for _ in range(3000):
        rates.append(runner.optim_wrapper.get_lr()['lr'][0])
        runner.optim_wrapper.optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert rates[0] == pytest.approx(1e-6)
    assert rates[200] == pytest.approx(1e-3, rel=1e-3)
    assert rates[1600] == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-2)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-2)
    assert rates == sorted(rates[:200]) + sorted(rates[200:], reverse=True)


def test_augmentation(imagenet):
    steps = {step.type: step for step in imagenet.train_dataloader.dataset.pipeline}
    assert list(steps) == [
        'grootv.LoadImageFromFile',
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
        'PackInputs',
    ]
    crop, rand = steps['RandomResizedCrop'], steps['RandAugment']
    assert (crop.scale, crop.interpolation) == (224, 'bicubic')
    assert steps['RandomFlip'].prob == 0.5
    assert (rand.policies, rand.num_policies) == ('timm_increasing', 2)
    assert (rand.magnitude_level, rand.total_level, rand.magnitude_std) == (9, 10, 0.5)
    assert rand.hparams.interpolation == 'bicubic'
    assert steps['RandomErasing'].erase_prob == 0.25

    assert [(a.type, a.alpha) for a in imagenet.model.train_cfg.augments] == [
        ('Mixup', 0.8),
        ('CutMix', 1.0),
    ]
    assert 'probs' not in imagenet.model.train_cfg  # each as often as the other
    loss = imagenet.model.head.loss
    assert (loss.type, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')


def test_evaluation_takes_the_whole_short_side(imagenet):
    _, resize, crop, _ = imagenet.test_dataloader.dataset.pipeline
    assert (resize.type, resize.scale, resize.edge) == ('ResizeEdge', 224, 'short')
    assert resize.interpolation == 'bicubic'
    assert (crop.type, crop.crop_size) == ('CenterCrop', 224)
    assert imagenet.val_evaluator == dict(type='Accuracy', topk=(1, 5))


def weight_decays(config: Config) -> dict[str, float]:
    groups = parameter_groups(config, build_model(config))
    return {name: group['weight_decay'] for name, group in groups.items()}


def test_weight_decay_follows_the_published_run(imagenet):
    decays = weight_decays(imagenet)
    for name, decay in decays.items():
        last = name.split('.')[-1]
        decayed = name.endswith(('.A_log', '.dt_proj.bias')) or (last == 'weight' and 'norm' not in name)
        assert decay == (0.05 if decayed else 0.0), name
    assert sum(name.endswith('.D') for name in decays) == sum('A_log' in name for name in decays)


def test_the_switch_exempts_a_log_and_the_step_bias(imagenet):
    switched = Config(imagenet.to_dict())
    for rule in switched.optim_wrapper.paramwise_cfg.custom_keys.values():
        rule.decay_mult = 0.0
    before, after = weight_decays(imagenet), weight_decays(switched)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.endswith(('.A_log', '.dt_proj.bias'))}
    assert all(after[name] == 0 for name in changed)


def test_the_demo_uses_the_parts_that_imagenet_uses():
    demo = Config.fromfile(DIGITS)
    tiny = Config.fromfile(ROOT / 'configs/classification/grootv-tiny_8xb128_in1k.py')
    for key in ('type', 'data_preprocessor'):
        assert demo.model.get(key) == tiny.model.get(key)
    assert demo.model.head.type == tiny.model.head.type
    assert demo.train_dataloader.dataset.type == tiny.train_dataloader.dataset.type
    assert demo.val_evaluator == tiny.val_evaluator
    assert demo.optim_wrapper.paramwise_cfg == tiny.optim_wrapper.paramwise_cfg
    assert 3e5 <= sum(p.numel() for p in build_model(demo).parameters()) <= 1e6


def test_images_are_normalised_as_published(imagenet):
    preprocessor = imagenet.data_preprocessor
    assert preprocessor.to_rgb
    assert [round(value / 255, 3) for value in preprocessor.mean] == [0.485, 0.456, 0.406]
    assert [round(value / 255, 3) for value in preprocessor.std] == [0.229, 0.224, 0.225]
