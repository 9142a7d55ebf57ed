"""The recipe of COCO says what the paper states and the README decides."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, PARAM_SCHEDULERS
from torch import nn

from .detection import BOXES_ONLY, CONFIGS, DINO, LANDSCAPE, ONE_OF_EACH, load
from .parts import ROOT, build_model, on, parameter_groups, without_decay

# The recipe ------------------------------------------------------------------------------------


def test_the_configs_are_these():
    sizes = ('tiny', 'small', 'base')
    names = {f'mask-rcnn_grootv-{size}_fpn_{run}_coco' for size in sizes for run in ('1x', 'ms-3x')}
    assert set(CONFIGS) == names | set(ONE_OF_EACH)


@pytest.mark.parametrize(
    'size, channels, rate, parameters, published',
    [
        ('tiny', [80, 160, 320, 640], 0.2, 48_593_744, 49),
        ('small', [96, 192, 384, 768], 0.3, 69_565_488, 70),
        ('base', [128, 256, 512, 1024], 0.4, 107_880_944, None),
    ],
)
@pytest.mark.parametrize('run', ['1x', 'ms-3x'])
def test_each_size_is_the_published_one(size, run, channels, rate, parameters, published):
    config = load(f'mask-rcnn_grootv-{size}_fpn_{run}_coco')
    backbone = config.model.backbone
    assert (backbone.arch, backbone.drop_path_rate) == (size, rate)
    assert backbone.out_indices == (0, 1, 2, 3)
    assert config.model.neck.in_channels == channels
    assert sum(p.numel() for p in build_model(config).parameters()) == parameters
    assert published in (None, round(parameters / 1e6))


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_the_other_heads_take_the_same_backbone(name):
    backbone = load(name).model.backbone
    expected = load('mask-rcnn_grootv-tiny_fpn_1x_coco').model.backbone
    stages = (1, 2, 3) if name in BOXES_ONLY else (0, 1, 2, 3)
    assert backbone == dict(expected, out_indices=stages)


@pytest.mark.parametrize('name', CONFIGS)
def test_eighty_classes(name):
    def heads(node):
        if isinstance(node, dict):
            yield from ([node.num_classes] if 'num_classes' in node else [])
            for value in node.values():
                yield from heads(value)
        elif isinstance(node, list):
            for element in node:
                yield from heads(element)

    counts = list(heads(load(name).model))
    assert counts and set(counts) == {80}


def rates(config: Config, per_epoch: int) -> list[float]:
    """The learning rate of every iteration of a run with ``per_epoch`` iterations an epoch."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    schedules = [PARAM_SCHEDULERS.build(dict(optimizer=optimizer, **cfg)) for cfg in config.param_scheduler]
    found = []
    for _ in range(config.train_cfg.max_epochs):
        for _ in range(per_epoch):
            found.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for schedule in schedules:
                if not schedule.by_epoch:
                    schedule.step()
        for schedule in schedules:
            if schedule.by_epoch:
                schedule.step()
    return found


@pytest.mark.parametrize('name', CONFIGS)
def test_rates_over_a_whole_run(name):
    config = load(name)
    warm_up, steps, epochs = 500, (8, 11), 12
    if 'ms-3x' in name:
        warm_up, steps, epochs = 1000, (27, 33), 36
    elif name == DINO:
        warm_up, steps = 0, (11,)
    assert config.train_cfg == dict(by_epoch=True, max_epochs=epochs, val_interval=1)
    found = rates(config, per_epoch=200)
    assert len(found) == 200 * epochs
    expected = np.full(len(found), 1e-4)
    for step in steps:
        expected[200 * step :] /= 10
    if warm_up:
        assert found[0] == pytest.approx(1e-7)
        assert found[warm_up // 2] == pytest.approx(0.5e-4, rel=1e-2)
    assert found[warm_up:] == pytest.approx(expected[warm_up:])


@pytest.mark.parametrize('name', CONFIGS)
def test_optimizer(name):
    config = load(name)
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.betas) == ('AdamW', 1e-4, (0.9, 0.999))
    assert optimizer.weight_decay == (1e-4 if name == DINO else 0.05)
    assert config.optim_wrapper.type == 'OptimWrapper'  # mixed precision is off
    assert 'constructor' not in config.optim_wrapper  # and so is the decay from layer to layer
    assert config.optim_wrapper.get('clip_grad') == (
        dict(max_norm=0.1, norm_type=2) if name == DINO else None
    )
    assert config.train_dataloader.batch_size == 2


@pytest.mark.parametrize('name', [name for name in CONFIGS if name != DINO])
def test_weight_decay_spares_what_it_spares_on_imagenet(name):
    config = load(name)
    imagenet = Config.fromfile(ROOT / 'configs/classification/grootv-tiny_8xb128_in1k.py')
    assert config.optim_wrapper.paramwise_cfg == imagenet.optim_wrapper.paramwise_cfg
    model = build_model(config)
    spared = without_decay(model)
    for parameter, group in parameter_groups(config, model).items():
        assert group['weight_decay'] == (0.0 if parameter in spared else 0.05), parameter
        assert group['lr'] == 1e-4
    assert {'backbone.stem.norm1.weight', 'neck.fpn_convs.0.conv.bias'} <= spared


def test_the_rates_can_fall_from_layer_to_layer():
    """As the README says; the decays stay as they are."""
    config = copy.deepcopy(load('mask-rcnn_grootv-tiny_fpn_1x_coco'))
    model = build_model(config)
    before = parameter_groups(config, model)
    config.optim_wrapper.constructor = 'grootv.LayerDecayOptimWrapperConstructor'
    config.optim_wrapper.paramwise_cfg.layer_decay_rate = 0.9
    after = parameter_groups(config, model)
    for name, group in after.items():
        assert group['weight_decay'] == before[name]['weight_decay'], name
    depths = sum((2, 2, 9, 2)) + 1  # the blocks and the stem, below the heads
    assert after['backbone.stem.conv1.weight']['lr'] == pytest.approx(1e-4 * 0.9**depths)
    assert after['backbone.stages.3.blocks.1.norm1.weight']['lr'] == pytest.approx(1e-4 * 0.9)
    assert after['roi_head.bbox_head.fc_cls.weight']['lr'] == pytest.approx(1e-4)


def test_dino_trains_its_backbone_at_a_tenth_of_the_rate():
    config = load(DINO)
    for parameter, group in parameter_groups(config, build_model(config)).items():
        assert group['lr'] == pytest.approx(1e-5 if parameter.startswith('backbone.') else 1e-4)
        assert group['weight_decay'] == 1e-4


# The images ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', CONFIGS)
def test_images_are_normalised_as_on_imagenet(name):
    config = load(name)
    preprocessor = config.model.data_preprocessor
    imagenet = Config.fromfile(ROOT / 'configs/classification/grootv-tiny_8xb128_in1k.py')
    assert preprocessor.bgr_to_rgb
    assert preprocessor.mean == imagenet.data_preprocessor.mean
    assert preprocessor.std == imagenet.data_preprocessor.std
    assert preprocessor.pad_size_divisor == (1 if name == DINO else 32)


@pytest.mark.parametrize('name', CONFIGS)
def test_training_skips_what_teaches_nothing(name):
    dataset = load(name).train_dataloader.dataset
    assert dataset.filter_cfg == dict(filter_empty_gt=name != DINO, min_size=32)


def dataset(coco: Path, name: str, side: str):
    """A data set of the config; its pipeline works at full size."""
    return DATASETS.build(on(coco, load(name))[f'{side}_dataloader'].dataset)


@pytest.mark.parametrize('name', ['mask-rcnn_grootv-tiny_fpn_1x_coco', 'retinanet_grootv-tiny_fpn_1x_coco'])
def test_training_images_of_the_1x_runs(coco, name):
    resize, flip = load(name).train_dataloader.dataset.pipeline[2:4]
    assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)
    assert flip == dict(type='RandomFlip', prob=0.5)
    data = dataset(coco, name, 'train')
    assert len(data) == 3  # the picture without an object is left out
    wide, high = data[0], data[2]
    assert wide['inputs'].shape == (3, 800, 1280)
    assert high['inputs'].shape == (3, 1333, 667)  # 800 would make the long side 1600
    for sample in (wide, high):
        objects = sample['data_samples'].gt_instances
        assert objects.labels.tolist() == [0, 10, 20]
        assert ('masks' in objects) == name.startswith('mask')
        _, height, width = sample['inputs'].shape
        assert (objects.bboxes.tensor[:, 2:] <= torch.tensor([width, height])).all()
        if 'masks' in objects:
            assert len(objects.masks) == 3
            assert (objects.masks.height, objects.masks.width) == (height, width)


@pytest.mark.parametrize('name', ['mask-rcnn_grootv-tiny_fpn_ms-3x_coco', DINO])
def test_training_images_of_many_sizes(name):
    steps = load(name).train_dataloader.dataset.pipeline
    assert [step.type for step in steps] == [
        'grootv.LoadImageFromFile',
        'LoadAnnotations',
        'RandomFlip',
        'RandomChoice',
        'PackDetInputs',
    ]
    assert steps[2].prob == 0.5
    plain, cropped = steps[3].transforms
    first, crop, last = cropped
    sides = [(1333, side) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
    assert [plain[0].scales, last.scales] == [sides, sides]
    long = 4200 if name == DINO else 1333
    assert first.scales == [(long, side) for side in (400, 500, 600)]
    assert (crop.type, crop.crop_type, crop.crop_size) == ('RandomCrop', 'absolute_range', (384, 600))
    assert all(step.keep_ratio for step in (plain[0], first, last))
    assert steps[1].get('with_mask', False) == (name != DINO)


def test_a_crop_keeps_boxes_and_masks_together(coco):
    np.random.seed(0)
    data = dataset(coco, 'mask-rcnn_grootv-tiny_fpn_ms-3x_coco', 'train')
    shapes, flips = set(), set()
    for index in (0, 2, 0, 2, 0, 2):
        sample = data[index]
        _, height, width = sample['inputs'].shape
        objects = sample['data_samples'].gt_instances
        assert len(objects.bboxes) == len(objects.masks) == len(objects.labels)
        assert (objects.masks.height, objects.masks.width) == (height, width)
        assert min(height, width) <= 800 and max(height, width) <= 1333
        shapes.add((height, width))
        flips.add(sample['data_samples'].flip)
    assert len(shapes) > 3 and flips == {True, False}


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_evaluation_images(coco, name):
    data = dataset(coco, name, 'val')
    wide, high, empty = data[0], data[2], data[3]
    assert wide['inputs'].shape == empty['inputs'].shape == (3, 800, 1280)
    assert high['inputs'].shape == (3, 1333, 667)
    assert (wide['data_samples'].ori_shape, wide['data_samples'].img_id) == (LANDSCAPE[::-1], 1)
    evaluator = load(name).val_evaluator
    assert evaluator.type == 'CocoMetric'
    assert evaluator.metric == ('bbox' if name in BOXES_ONLY else ['bbox', 'segm'])
