"""The recipe of ADE20K says what the paper states and the README decides."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from torch import nn

from .parts import ROOT, build_model, parameter_groups, without_decay
from .segmentation import CONFIGS, FPN, LANDSCAPE, MASK2FORMER, ONE_OF_EACH, RATIOS, UPERNET, load, samples

# The recipe ------------------------------------------------------------------------------------


def test_the_configs_are_these():
    assert set(CONFIGS) == {*UPERNET, MASK2FORMER, FPN}


@pytest.mark.parametrize(
    'size, channels, rate, parameters, auxiliary, published',
    [
        ('tiny', [80, 160, 320, 640], 0.2, 59_745_676, 776_342, 60),
        ('small', [96, 192, 384, 768], 0.3, 81_712_748, 923_798, 82),
        ('base', [128, 256, 512, 1024], 0.4, 122_018_860, 1_218_710, None),
    ],
)
def test_each_size_is_the_published_one(size, channels, rate, parameters, auxiliary, published):
    """The published parameters count the auxiliary head."""
    config = load(f'grootv-{size}_upernet_8xb2-160k_ade20k-512x512')
    backbone = config.model.backbone
    assert (backbone.arch, backbone.drop_path_rate) == (size, rate)
    assert backbone.out_indices == (0, 1, 2, 3)
    assert config.model.decode_head.in_channels == channels
    assert config.model.auxiliary_head.in_channels == channels[2]
    model = build_model(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.auxiliary_head.parameters()) == auxiliary
    assert published in (None, round(parameters / 1e6))


def test_the_heads_of_upernet():
    model = load(UPERNET[0]).model
    main, auxiliary = model.decode_head, model.auxiliary_head
    assert (main.type, main.channels, main.loss_decode.loss_weight) == ('UPerHead', 512, 1.0)
    assert (auxiliary.type, auxiliary.channels, auxiliary.loss_decode.loss_weight) == ('FCNHead', 256, 0.4)
    assert auxiliary.in_index == 2


@pytest.mark.parametrize('name', [MASK2FORMER, FPN])
def test_the_other_heads_take_the_same_backbone(name):
    assert load(name).model.backbone == load(UPERNET[0]).model.backbone


@pytest.mark.parametrize('name', CONFIGS)
def test_one_hundred_and_fifty_classes(name):
    model = load(name).model
    assert model.decode_head.num_classes == 150
    if 'auxiliary_head' in model:
        assert model.auxiliary_head.num_classes == 150
    if name == MASK2FORMER:
        assert model.decode_head.loss_cls.class_weight == [1.0] * 150 + [0.1]  # the last is "nothing"


def rates(config: Config) -> list[float]:
    """The learning rate of every hundredth iteration of a run, whose schedule is a hundredth as long."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    schedules = []
    for cfg in config.param_scheduler:
        assert cfg.by_epoch is False and cfg.get('begin', 0) % 100 == cfg.end % 100 == 0
        cfg = dict(cfg, optimizer=optimizer, begin=cfg.get('begin', 0) // 100, end=cfg.end // 100)
        schedules.append(PARAM_SCHEDULERS.build(cfg))
    found = []
    for _ in range(config.train_cfg.max_iters // 100):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    return found


@pytest.mark.parametrize('name', UPERNET)
def test_rates_over_a_whole_run(name):
    config = load(name)
    assert config.train_cfg == dict(type='IterBasedTrainLoop', max_iters=160_000, val_interval=8000)
    found = rates(config)
    assert len(found) == 1600
    assert found[0] == pytest.approx(1e-6 * 6e-5)
    assert found[8] == pytest.approx(6e-5 * 8 / 15, rel=1e-4)
    assert found[15] == found[16] == pytest.approx(6e-5)
    assert found[16:] == pytest.approx(list(np.linspace(6e-5, 0, 1584)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize('name, rate, iterations', [(MASK2FORMER, 1e-4, 160_000), (FPN, 2e-4, 40_000)])
def test_rates_of_the_other_heads(name, rate, iterations):
    config = load(name)
    assert config.train_cfg == dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=8000)
    found = rates(config)
    expected = rate * np.linspace(1, 0, iterations // 100) ** 0.9
    assert found == pytest.approx(list(expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize('name', CONFIGS)
def test_optimizer(name):
    config = load(name)
    optimizer = config.optim_wrapper.optimizer
    rate, decay = {MASK2FORMER: (1e-4, 0.05), FPN: (2e-4, 1e-4)}.get(name, (6e-5, 0.01))
    assert (optimizer.type, optimizer.betas) == ('AdamW', (0.9, 0.999))
    assert (optimizer.lr, optimizer.weight_decay) == (rate, decay)
    assert config.optim_wrapper.type == 'OptimWrapper'  # mixed precision is off
    assert 'constructor' not in config.optim_wrapper  # and so is the decay from layer to layer
    clip = dict(max_norm=0.01) if name == MASK2FORMER else None
    assert config.optim_wrapper.get('clip_grad') == clip
    assert 8 * config.train_dataloader.batch_size == (32 if name == FPN else 16)


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_rates_and_weight_decay_of_every_parameter(name):
    """Mask2Former's backbone learns at a tenth of the rate; its queries are spared too."""
    config = load(name)
    model = build_model(config)
    spared = without_decay(model)
    assert {'backbone.stem.norm1.weight', 'backbone.stages.2.blocks.8.ssm.D'} <= spared
    if name == MASK2FORMER:
        queries = {f'decode_head.{part}.weight' for part in ('query_embed', 'query_feat', 'level_embed')}
        assert not queries & spared
        spared |= queries
    optimizer = config.optim_wrapper.optimizer
    for parameter, group in parameter_groups(config, model).items():
        assert group['weight_decay'] == (0.0 if parameter in spared else optimizer.weight_decay), parameter
        slow = name == MASK2FORMER and parameter.startswith('backbone.')
        assert group['lr'] == pytest.approx(optimizer.lr * (0.1 if slow else 1)), parameter


@pytest.mark.parametrize('name', UPERNET[1:])
def test_every_size_has_the_same_optimizer(name):
    assert load(name).optim_wrapper == load(UPERNET[0]).optim_wrapper


def test_the_layer_decay_of_the_readme():
    config = load(UPERNET[0])
    config.merge_from_dict(
        dict(
            optim_wrapper=dict(
                constructor='grootv.LayerDecayOptimWrapperConstructor',
                paramwise_cfg=dict(layer_decay_rate=0.9),
            )
        )
    )
    groups = parameter_groups(config, build_model(config))
    for name, distance in {'decode_head.conv_seg.weight': 0, 'backbone.stem.conv1.weight': 16}.items():
        assert groups[name]['lr'] == pytest.approx(6e-5 * 0.9**distance)


@pytest.mark.parametrize('name', CONFIGS)
def test_checkpoints_and_evaluations_count_iterations(name):
    config = load(name)
    checkpoint = config.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.save_best) == (False, 'mIoU')
    # A best checkpoint is as good a place to resume from as any other.
    assert checkpoint.interval == config.train_cfg.val_interval
    assert config.log_processor.by_epoch is config.default_hooks.logger.log_metric_by_epoch is False


@pytest.mark.parametrize('name', CONFIGS)
def test_batch_norms_are_joined_by_the_runner_alone(name):
    """A SyncBatchNorm in the model itself cannot train on several processes without GPUs."""
    config = load(name)
    assert config.sync_bn == 'torch'
    modules = list(build_model(config).modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in modules)
    assert any(isinstance(module, nn.BatchNorm2d) for module in modules) == (name != MASK2FORMER)


# The images ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', CONFIGS)
def test_images_are_normalised_as_on_imagenet(name):
    preprocessor = load(name).model.data_preprocessor
    imagenet = Config.fromfile(ROOT / 'configs/classification/grootv-tiny_8xb128_in1k.py')
    assert preprocessor.bgr_to_rgb
    assert preprocessor.mean == imagenet.data_preprocessor.mean
    assert preprocessor.std == imagenet.data_preprocessor.std


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_training_images(ade, name):
    config = load(name)
    steps = config.train_dataloader.dataset.pipeline
    assert [step.type for step in steps] == [
        'grootv.LoadImageFromFile',
        'grootv.LoadSegAnnotations',
        'grootv.CheckSegLabels',
        'RandomResize',
        'RandomCrop',
        'RandomFlip',
        'PhotoMetricDistortion',
        'PackSegInputs',
    ]
    check, resize, crop, flip = steps[2:6]
    assert check.num_classes == 150
    assert (resize.scale, resize.ratio_range, resize.keep_ratio) == ((2048, 512), (0.5, 2.0), True)
    assert (crop.crop_size, crop.cat_max_ratio, flip.prob) == ((512, 512), 0.75, 0.5)

    pictures = samples(ade, config, 'train')
    batch = {key: [picture[key] for picture in pictures] for key in ('inputs', 'data_samples')}
    data = MODELS.build(config.model.data_preprocessor)(batch, training=True)
    assert data['inputs'].shape == (3, 3, 512, 512)
    labels = [sample.gt_sem_seg.data for sample in data['data_samples']]
    assert all(label.shape == (1, 512, 512) for label in labels)
    # 0 in the file says "no class", and so does the padding; a crop may miss one of the two classes.
    found = [set(label.unique().tolist()) - {255} for label in labels]
    assert all(found[:2]) and found[0] | found[1] <= {0, 149} and not found[2]


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_evaluation_images(ade, name):
    config = load(name)
    wide, high, _ = samples(ade, config, 'test')
    assert wide['inputs'].shape == (3, 512, 819)
    assert high['inputs'].shape == (3, 819, 512)
    assert wide['data_samples'].gt_sem_seg.shape == wide['data_samples'].ori_shape == LANDSCAPE[::-1]
    assert wide['data_samples'].gt_sem_seg.data.unique().tolist() == [0, 149, 255]
    assert config.model.test_cfg == dict(mode='whole')
    assert config.val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])
    assert config.test_evaluator == config.val_evaluator
    assert config.test_dataloader == config.val_dataloader


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_six_sizes_and_their_mirror_images(ade, name):
    config = load(name)
    assert config.tta_model == dict(type='SegTTAModel')
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    wide = samples(ade, config, 'test')[0]
    found = [
        (*view.shape[1:], sample.flip)
        for view, sample in zip(wide['inputs'], wide['data_samples'], strict=True)
    ]
    sizes = [(int(512 * ratio), int(819.2 * ratio + 0.5)) for ratio in RATIOS]
    assert found == [(*size, flip) for size in sizes for flip in (False, True)]
    assert all(sample.gt_sem_seg.shape == LANDSCAPE[::-1] for sample in wide['data_samples'])
    for plain, mirrored in zip(wide['inputs'][::2], wide['inputs'][1::2], strict=True):
        assert torch.equal(plain.flip(2), mirrored)
