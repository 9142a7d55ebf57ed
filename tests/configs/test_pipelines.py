"""What the configs make of images: augmentation, sizes, annotations, evaluation."""

import pytest
import torch
from mmengine.registry import DATASETS, MODELS

from . import parts

WITH_MASKS = [name for name in parts.DETECTION if name not in parts.BOXES_ONLY]


@pytest.mark.parametrize('names', [parts.IMAGENET, parts.SEGMENTATION, WITH_MASKS])
def test_configs_of_a_task_evaluate_alike(names):
    first = parts.load(names[0])
    for name in names:
        for key in ('val_dataloader', 'val_evaluator', 'test_evaluator', 'tta_model', 'tta_pipeline'):
            assert parts.load(name).get(key) == first.get(key), (name, key)
        assert parts.load(name).test_dataloader == first.val_dataloader


@pytest.mark.parametrize('name', parts.RECIPES)
def test_places_of_the_data(name):
    for side, folder in (('train', 'training'), ('val', 'validation')):
        dataset = parts.load(name)[f'{side}_dataloader'].dataset
        coco = dict(ann_file=f'annotations/instances_{side}2017.json', data_prefix=dict(img=f'{side}2017/'))
        ade = dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}')
        expected = dict(classification=dict(split=side), detection=coco, segmentation=dict(data_prefix=ade))
        keys = dataset.keys() & {'split', 'ann_file', 'data_prefix'}
        assert {key: dataset[key] for key in keys} == expected[parts.task_of(name)]


# ImageNet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', parts.IMAGENET)
def test_augmentation_and_evaluation_on_imagenet(name):
    config = parts.load(name)
    _, crop, flip, rand, erasing, _ = steps = config.train_dataloader.dataset.pipeline
    kinds = ['RandomResizedCrop', 'RandomFlip', 'RandAugment', 'RandomErasing', 'PackInputs']
    assert [step.type for step in steps[1:]] == kinds
    assert (crop.scale, crop.interpolation) == (224, 'bicubic')
    assert (flip.prob, erasing.erase_prob) == (0.5, 0.25)
    assert (rand.policies, rand.num_policies) == ('timm_increasing', 2)
    assert (rand.magnitude_level, rand.total_level, rand.magnitude_std) == (9, 10, 0.5)
    assert rand.hparams.interpolation == 'bicubic'

    mixes = [(mix.type, mix.alpha) for mix in config.model.train_cfg.augments]
    assert mixes == [('Mixup', 0.8), ('CutMix', 1.0)]
    assert 'probs' not in config.model.train_cfg  # each as often as the other
    loss = config.model.head.loss
    assert (loss.type, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')

    _, resize, crop, _ = config.test_dataloader.dataset.pipeline
    assert (resize.type, resize.scale, resize.edge) == ('ResizeEdge', 224, 'short')
    assert resize.interpolation == 'bicubic'
    assert (crop.type, crop.crop_size) == ('CenterCrop', 224)
    assert config.val_evaluator == dict(type='Accuracy', topk=(1, 5))


# COCO --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [parts.MASK_RCNN, *parts.BOXES_ONLY])
def test_images_of_coco_in_evaluation_and_in_the_1x_runs(name):
    config, masks = parts.load(name), name == parts.MASK_RCNN
    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    annotations = dict(type='LoadAnnotations', with_bbox=True, **(dict(with_mask=True) if masks else {}))
    assert config.val_dataloader.dataset.pipeline[1:-1] == [resize, annotations]
    if name != parts.DINO:
        steps = config.train_dataloader.dataset.pipeline[1:-1]
        assert steps == [annotations, resize, dict(type='RandomFlip', prob=0.5)]
    evaluator = dict(type='grootv.CocoMetric', ann_file='data/coco/annotations/instances_val2017.json')
    assert config.val_evaluator == dict(evaluator, metric=['bbox', 'segm'] if masks else 'bbox')
    if masks:  # mmdet's DetTTAModel refuses them
        assert 'tta_model' not in config and 'tta_pipeline' not in config
        return
    sizes, flips, _ = config.tta_pipeline[1].transforms
    assert [size.scale for size in sizes] == [(1333, 800), (1000, 600), (1667, 1000)]
    assert [flip.prob for flip in flips] == [0.0, 1.0]


@pytest.mark.parametrize('name', [name for name in parts.DETECTION if 'ms-3x' in name or name == parts.DINO])
def test_training_images_of_many_sizes(name):
    steps = parts.load(name).train_dataloader.dataset.pipeline
    kinds = ['LoadAnnotations', 'RandomFlip', 'RandomChoice', 'PackDetInputs']
    assert [step.type for step in steps[1:]] == kinds
    assert steps[1].get('with_mask', False) == (name != parts.DINO)
    assert steps[2].prob == 0.5
    plain, (first, crop, last) = steps[3].transforms
    sides = [(1333, side) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
    assert [plain[0].scales, last.scales] == [sides, sides]
    assert first.scales == [(4200 if name == parts.DINO else 1333, side) for side in (400, 500, 600)]
    assert (crop.type, crop.crop_type, crop.crop_size) == ('RandomCrop', 'absolute_range', (384, 600))
    assert all(step.keep_ratio for step in (plain[0], first, last))


# ADE20K ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', parts.SEGMENTATION)
def test_augmentation_on_ade20k(name):
    steps = parts.load(name).train_dataloader.dataset.pipeline
    kinds = ['grootv.LoadSegAnnotations', 'grootv.CheckSegLabels', 'RandomResize', 'RandomCrop', 'RandomFlip']
    assert [step.type for step in steps[1:]] == [*kinds, 'PhotoMetricDistortion', 'PackSegInputs']
    check, resize, crop, flip = steps[2:6]
    assert check.num_classes == 150
    assert (resize.scale, resize.ratio_range, resize.keep_ratio) == ((2048, 512), (0.5, 2.0), True)
    assert (crop.crop_size, crop.cat_max_ratio, flip.prob) == ((512, 512), 0.75, 0.5)
    assert parts.load(name).model.test_cfg == dict(mode='whole')
    assert parts.load(name).val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])


def test_training_images_of_ade20k(scenes):
    config = parts.on(scenes, parts.load(parts.UPERNET))
    config.train_dataloader.dataset.pipeline[3].ratio_range = (0.5, 0.5)  # small enough to be padded
    dataset = DATASETS.build(config.train_dataloader.dataset)
    pictures = [dataset[index] for index in range(3)]
    batch = {key: [picture[key] for picture in pictures] for key in ('inputs', 'data_samples')}
    data = MODELS.build(config.model.data_preprocessor)(batch, training=True)
    assert data['inputs'].shape == (3, 3, 512, 512)
    labels = torch.stack([sample.gt_sem_seg.data for sample in data['data_samples']])
    assert labels.shape == (3, 1, 512, 512)
    # The files hold 1 for the background and 2 to 11 for the digits; padding is no class.
    assert labels.min() == 0 and labels[..., :256, :256].max() < 11
    assert (labels[..., 256:, :] == 255).all() and (labels[..., 256:] == 255).all()


def test_evaluation_images_of_ade20k_and_six_sizes_with_their_mirror_images():
    config = parts.load(parts.UPERNET)
    _, resize, *read, _ = config.val_dataloader.dataset.pipeline
    assert resize == dict(type='Resize', scale=(2048, 512), keep_ratio=True)
    assert read == [dict(type='LoadAnnotations'), dict(type='grootv.CheckSegLabels', num_classes=150)]
    assert config.tta_model == dict(type='SegTTAModel')
    sizes, flips, *others = config.tta_pipeline[1].transforms
    assert [size.scale for size in sizes] == [(2048 * n // 4, 128 * n) for n in range(2, 8)]
    assert all(size.keep_ratio for size in sizes)
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    assert others == [*([step] for step in read), [dict(type='PackSegInputs')]]
