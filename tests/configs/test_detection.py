"""The recipe of COCO says what the paper states and the README decides; every head trains and tests."""

import copy
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from .parts import ROOT, build_model, parameter_groups, pipelines

FOLDER = ROOT / 'configs/detection'
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
MASK_RCNN = [name for name in CONFIGS if name.startswith('mask-rcnn')]
DINO = 'dino-4scale_grootv-tiny_8xb2-12e_coco'
ONE_OF_EACH = [
    'mask-rcnn_grootv-tiny_fpn_ms-3x_coco',
    'cascade-mask-rcnn_grootv-tiny_fpn_1x_coco',
    'retinanet_grootv-tiny_fpn_1x_coco',
    DINO,
]
BOXES_ONLY = ONE_OF_EACH[2:]
LANDSCAPE, PORTRAIT = (96, 60), (45, 90)  # width, height


@cache
def load(name: str) -> Config:
    return Config.fromfile(CONFIGS[name])


# The data ------------------------------------------------------------------------------------


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.fixture(scope='module')
def coco(tmp_path_factory) -> Path:
    """COCO's folders with four pictures each: two wide, one high, one wide without an object."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    noise = np.random.default_rng(0)
    names = CocoDataset.METAINFO['classes']
    for side in ('train2017', 'val2017'):
        (root / side).mkdir()
        images, annotations = [], []
        for number, (width, height) in enumerate((LANDSCAPE, LANDSCAPE, PORTRAIT, LANDSCAPE), 1):
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / side / f'{number}.png')
            images.append(dict(id=number, file_name=f'{number}.png', width=width, height=height))
            for label in range(3 if number < 4 else 0):
                box = [5 + 4 * label, 6, 20 + label, 30]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=1 + 10 * label,
                        bbox=box,
                        area=box[2] * box[3],
                        segmentation=polygon(*box),
                        iscrowd=0,
                    )
                )
        content = dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=index, name=name) for index, name in enumerate(names, 1)],
        )
        (root / f'annotations/instances_{side}.json').write_text(json.dumps(content))
    return root


def on(coco: Path, config: Config) -> Config:
    """A copy of the config with its data in the folder ``coco``, read by this process."""
    config = copy.deepcopy(config)
    for side in ('train', 'val', 'test'):
        loader = config[f'{side}_dataloader']
        loader.dataset.data_root = str(coco)
        loader.update(num_workers=0, persistent_workers=False)
    for side in ('val', 'test'):
        evaluator = config[f'{side}_evaluator']
        evaluator.ann_file = evaluator.ann_file.replace('data/coco', str(coco))
    return config


def tenth(node):
    """Everything in pixels of the input at a tenth of its size."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ('scale', 'crop_size'):
                node[key] = tuple(pixels // 10 for pixels in value)
            elif key == 'scales':
                node[key] = [tuple(pixels // 10 for pixels in scale) for scale in value]
            else:
                tenth(value)
    elif isinstance(node, list):
        for element in node:
            tenth(element)


def narrow(node, width: int = 32):
    """Necks and heads ``width`` channels wide, and as few boxes as such small images need."""
    limits = dict(num=16, nms_pre=50, max_per_img=20, num_queries=30, num_dn_queries=6, num_layers=2)
    limits |= dict.fromkeys(
        ['in_channels', 'out_channels', 'feat_channels', 'conv_out_channels', 'fc_out_channels'], width
    )
    limits |= dict(embed_dims=width, feedforward_channels=width, num_feats=width // 2)
    if isinstance(node, dict):
        for key, value in node.items():
            if key in limits and isinstance(value, int):
                node[key] = limits[key]
            elif key == 'in_channels':
                node[key] = [8 * 2**stage for stage in range(4 - len(value), 4)]
            elif key == 'score_thr':
                node[key] = 0.0  # an untrained head is sure of nothing
            else:
                narrow(value)
    elif isinstance(node, list):
        for element in node:
            narrow(element)


def small(coco: Path, name: str) -> Config:
    """The config on the small data, with a small model."""
    config = on(coco, load(name))
    narrow(config.model)
    for pipeline in pipelines(config):
        tenth(pipeline)
    backbone = config.model.backbone
    backbone.arch, backbone.init_cfg = dict(embed_dims=8, depths=[1, 1, 1, 1]), None
    if name == DINO:
        config.model.bbox_head.embed_dims = config.model.neck.out_channels
    init_default_scope(config.default_scope)
    return config


def start(config: Config) -> nn.Module:
    model = MODELS.build(config.model)
    model.init_weights()
    return model


# The recipe ----------------------------------------------------------------------------------


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


def without_decay(model: nn.Module) -> set[str]:
    """Biases, norms and vectors, but not the two parameters that the published ImageNet run decays."""
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    spared = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if isinstance(module, norms) or name.endswith('.bias') or parameter.ndim == 1:
                spared.add(name)
    return {name for name in spared if not name.endswith(('.A_log', '.dt_proj.bias'))}


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


# The images ----------------------------------------------------------------------------------


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
    config = on(coco, load(name))
    init_default_scope(config.default_scope)
    return DATASETS.build(config[f'{side}_dataloader'].dataset)


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


# Training and testing ------------------------------------------------------------------------


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_a_training_step(coco, name):
    config = small(coco, name)
    model = start(config).train()
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    assert len(batch['inputs']) == 2
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, parts = model.parse_losses(losses)
    assert all(torch.isfinite(part).all() for part in parts.values())
    assert any('mask' in part for part in parts) == (name not in BOXES_ONLY)
    loss.backward()
    # Data-parallel training demands a gradient for every parameter.
    assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    first = model.backbone.stem.conv1.weight
    assert first.grad.abs().max() > 0
    before = first.detach().clone()
    build_optim_wrapper(model, config.optim_wrapper).step()
    assert torch.isfinite(first).all() and not torch.equal(first, before)


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_predictions(coco, name):
    config = small(coco, name)
    model = start(config).eval()
    loader = Runner.build_dataloader(config.test_dataloader)
    metric = Evaluator(config.test_evaluator)
    metric.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        objects, (height, width) = sample.pred_instances, sample.ori_shape
        assert 0 < len(objects.labels) <= 20
        assert objects.bboxes.shape == (len(objects.labels), 4)
        assert (objects.bboxes >= 0).all()
        assert (objects.bboxes[:, 2:] - torch.tensor([width, height]) < 1e-3).all()
        assert ((objects.scores >= 0) & (objects.scores <= 1)).all()
        assert ((objects.labels >= 0) & (objects.labels < 80)).all()
        if name not in BOXES_ONLY:
            assert objects.masks.shape == (len(objects.labels), height, width)
            assert objects.masks.dtype == torch.bool
        metric.process([sample], batch)
    figures = metric.evaluate(len(loader.dataset))
    assert 0 <= figures['coco/bbox_mAP'] <= 1
    assert ('coco/segm_mAP' in figures) == (name not in BOXES_ONLY)


@pytest.mark.parametrize('name', BOXES_ONLY)
def test_boxes_are_averaged_over_views(coco, name):
    sizes, flips, _ = load(name).tta_pipeline[1].transforms
    assert [size.scale for size in sizes] == [(1333, 800), (1000, 600), (1667, 1000)]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    config = small(coco, name)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    model = MODELS.build(dict(**config.tta_model, module=config.model)).eval()
    model.init_weights()
    batch = next(iter(Runner.build_dataloader(config.test_dataloader)))
    assert len(batch['inputs']) == 6
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    objects = sample.pred_instances
    assert 0 < len(objects.labels) <= config.tta_model.tta_cfg.max_per_img
    corner = objects.bboxes[:, 2:] - torch.tensor(LANDSCAPE)
    assert (corner < 1e-3).all()


def test_the_inferencer_of_the_readme(coco, tmp_path):
    """It reads a config and a checkpoint of ours, draws and writes."""
    from mmdet.apis import DetInferencer

    from grootv.utils.checkpoint import install_safe_loader

    config = small(coco, ONE_OF_EACH[0])
    config.dump(tmp_path / 'config.py')
    classes = DATASETS.build(config.test_dataloader.dataset).metainfo['classes']
    state = start(config).state_dict()
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes))), tmp_path / 'some.pth')

    install_safe_loader()
    inferencer = DetInferencer(str(tmp_path / 'config.py'), str(tmp_path / 'some.pth'), device='cpu')
    image = coco / 'val2017/1.png'
    results = inferencer(str(image), out_dir=str(tmp_path / 'out'), no_save_pred=False)
    (objects,) = results['predictions']
    assert len(objects['labels']) == len(objects['scores']) == len(objects['bboxes']) > 0
    assert Image.open(tmp_path / 'out/vis/1.png').size == LANDSCAPE
    assert json.loads((tmp_path / 'out/preds/1.json').read_text())['labels'] == objects['labels']


@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in BOXES_ONLY])
def test_masks_have_no_test_time_augmentation(name):
    """mmdet's DetTTAModel refuses them."""
    assert 'tta_model' not in load(name) and 'tta_pipeline' not in load(name)
