"""Every detector and segmentor of the configs trains and tests, small, on a miniature of its data."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image

from . import parts

WIDTH = 32
LIMITS = dict(
    num=16, nms_pre=50, max_per_img=20, num_queries=10, num_dn_queries=6, num_layers=2, num_points=64
)
LIMITS |= dict(embed_dims=WIDTH, feedforward_channels=WIDTH, num_feats=WIDTH // 2, channels=WIDTH)
LIMITS |= dict.fromkeys(
    ['in_channels', 'out_channels', 'feat_channels', 'conv_out_channels', 'fc_out_channels'], WIDTH
)


def narrow(node) -> None:
    """Necks and heads ``WIDTH`` channels wide, and as few boxes and points as such small images need."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in LIMITS and isinstance(value, int) and value > 4:
            node[key] = LIMITS[key]
        elif key == 'in_channels' and value[0] != value[-1]:  # the maps of the backbone
            node[key] = [8 * 2**stage for stage in range(4 - len(value), 4)]
        elif key == 'in_channels':
            node[key] = [WIDTH] * len(value)
        elif key == 'score_thr':
            node[key] = 0.0  # an untrained head is sure of nothing
        elif key == 'auxiliary_head':
            narrow(value)
            value.in_channels = 32
        elif isinstance(value, (dict, list)):
            narrow(value)


def divide(node, divisor: int) -> None:
    """Divide the sizes of images in a pipeline."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in ('scale', 'crop_size'):
            node[key] = tuple(pixels // divisor for pixels in value)
        elif key == 'scales':
            node[key] = [tuple(pixels // divisor for pixels in scale) for scale in value]
        elif isinstance(value, (dict, list)):
            divide(value, divisor)


def small(folder: Path, name: str) -> Config:
    """The config on the small data, with a small model and small images."""
    config = parts.on(folder, parts.load(name))
    narrow(config.model)
    for pipeline in parts.pipelines(config):
        divide(pipeline, 10 if name in parts.DETECTORS else 8)
    config.model.backbone.update(arch=dict(embed_dims=8, depths=[1, 1, 1, 1]), init_cfg=None)
    if name == parts.DINO:
        config.model.bbox_head.embed_dims = config.model.neck.out_channels
    if name in parts.SEGMENTORS:
        config.model.data_preprocessor.size = (64, 64)
        config.train_dataloader.batch_size = 2
    return config


@pytest.fixture
def folder(request, name) -> Path:
    return request.getfixturevalue('coco' if name in parts.DETECTORS else 'ade')


@pytest.mark.parametrize('name', [*parts.DETECTORS, *parts.SEGMENTORS])
def test_a_training_step(folder, name):
    config = small(folder, name)
    model = parts.start(config.model).train()
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    assert len(batch['inputs']) == 2
    loss, losses = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
    assert all(torch.isfinite(part).all() for part in losses.values())
    has_masks = (name in parts.DETECTORS and name not in parts.BOXES_ONLY) or name == parts.MASK2FORMER
    assert any('mask' in part for part in losses) == has_masks
    assert any('aux' in part for part in losses) == (name == parts.UPERNET)

    loss.backward()
    # Data-parallel training demands a gradient for every parameter.
    assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    first = model.backbone.stem.conv1.weight
    assert first.grad.abs().max() > 0
    before = first.detach().clone()
    build_optim_wrapper(model, config.optim_wrapper).step()
    assert torch.isfinite(first).all() and not torch.equal(first, before)


@pytest.mark.parametrize('name', parts.SEGMENTORS)
def test_a_batch_without_labels_teaches_nothing_wrong(ade, name):
    config = small(ade, name)
    model = parts.start(config.model).train()
    unlabelled = parts.samples(ade, config, 'train')[2]
    batch = {key: [unlabelled[key]] * 2 for key in ('inputs', 'data_samples')}
    loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def check(sample, name: str, most: int = 20) -> None:
    """Values and shapes of a prediction at the size of the picture."""
    height, width = sample.ori_shape
    if name in parts.SEGMENTORS:
        labels = sample.pred_sem_seg.data
        assert labels.shape == (1, height, width) == sample.gt_sem_seg.data.shape
        assert ((labels >= 0) & (labels < 150)).all()
        return
    objects = sample.pred_instances
    assert 0 < len(objects.labels) <= most
    assert objects.bboxes.shape == (len(objects.labels), 4)
    assert (objects.bboxes >= 0).all()
    assert (objects.bboxes[:, 2:] - torch.tensor([width, height]) < 1e-3).all()
    assert ((objects.scores >= 0) & (objects.scores <= 1)).all()
    assert ((objects.labels >= 0) & (objects.labels < 80)).all()
    if name not in parts.BOXES_ONLY:
        assert objects.masks.shape == (len(objects.labels), height, width)
        assert objects.masks.dtype == torch.bool


@pytest.mark.parametrize('name', [*parts.DETECTORS, *parts.SEGMENTORS])
def test_predictions(folder, name):
    config = small(folder, name)
    model = parts.start(config.model).eval()
    loader = Runner.build_dataloader(config.test_dataloader)
    metric = Evaluator(config.test_evaluator)
    metric.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        check(sample, name)
        metric.process([sample], batch)
    figures = metric.evaluate(len(loader.dataset))
    assert 0 <= figures['mIoU' if name in parts.SEGMENTORS else 'coco/bbox_mAP'] <= 100
    assert ('coco/segm_mAP' in figures) == (name in parts.DETECTORS and name not in parts.BOXES_ONLY)


@pytest.mark.parametrize('name', [*parts.BOXES_ONLY, parts.UPERNET])
def test_views_are_averaged(folder, name):
    config = small(folder, name)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    model = parts.start(dict(**config.tta_model, module=config.model)).eval()
    batch = next(iter(Runner.build_dataloader(config.test_dataloader)))
    assert len(batch['inputs']) == (12 if name == parts.UPERNET else 6)
    with torch.no_grad():
        (sample,) = model.test_step(batch)
        if name != parts.UPERNET:
            check(sample, name, config.tta_model.tta_cfg.max_per_img)
            return
        views = [
            model.module.test_step(dict(inputs=inputs, data_samples=data_samples))[0]
            for inputs, data_samples in zip(batch['inputs'], batch['data_samples'], strict=True)
        ]
    scores = sum(view.seg_logits.data.softmax(0) for view in views)
    assert torch.equal(sample.pred_sem_seg.data, scores.argmax(0, keepdim=True))


def test_the_inferencer_of_the_detection_readme(coco, tmp_path):
    """It reads a config and a checkpoint of ours, draws and writes."""
    from mmdet.apis import DetInferencer

    from grootv.checkpoint import install_safe_loader

    config = small(coco, parts.MASK_RCNN_3X)
    config.dump(tmp_path / 'config.py')
    classes = DATASETS.build(config.test_dataloader.dataset).metainfo['classes']
    state = parts.start(config.model).state_dict()
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes))), tmp_path / 'some.pth')

    install_safe_loader()
    inferencer = DetInferencer(str(tmp_path / 'config.py'), str(tmp_path / 'some.pth'), device='cpu')
    image = coco / 'val2017/1.png'
    results = inferencer(str(image), out_dir=str(tmp_path / 'out'), no_save_pred=False)
    (objects,) = results['predictions']
    assert len(objects['labels']) == len(objects['scores']) == len(objects['bboxes']) > 0
    assert Image.open(tmp_path / 'out/vis/1.png').size == parts.LANDSCAPE
    assert json.loads((tmp_path / 'out/preds/1.json').read_text())['labels'] == objects['labels']
