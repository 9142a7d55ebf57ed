"""Every detector and segmentor of the configs trains and tests, small, on scenes of digits."""

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from . import parts
from .small import small


@pytest.fixture
def config(scenes, name) -> Config:
    return small(scenes, name)


def backward(model: torch.nn.Module, batch: dict) -> set[str]:
    """Train on a batch, but for the update; the names of the losses."""
    model.zero_grad()
    loss, losses = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
    loss.backward()
    assert all(torch.isfinite(part).all() for part in losses.values())
    # Data-parallel training demands a gradient for every parameter.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    return set(losses)


def check(sample, name: str, most: int = 20) -> None:
    """A prediction has the size of the picture."""
    height, width = sample.ori_shape
    if name in parts.SEGMENTORS:
        assert sample.pred_sem_seg.shape == (height, width) == sample.gt_sem_seg.shape
        assert sample.pred_sem_seg.data.max() < 150
        return
    objects = sample.pred_instances
    assert 0 < len(objects.labels) <= most and objects.labels.max() < 80
    assert (objects.bboxes >= 0).all()
    assert (objects.bboxes[:, 2:] - torch.tensor([width, height]) < 1e-3).all()
    if name not in parts.BOXES_ONLY:
        assert objects.masks.shape == (len(objects.labels), height, width)


@pytest.mark.parametrize('name', [*parts.DETECTORS, *parts.SEGMENTORS])
def test_training_and_predictions(config, name):
    model = parts.start(config.model).train()
    losses = backward(model, next(iter(Runner.build_dataloader(config.train_dataloader, seed=0))))
    has_masks = name in parts.DETECTORS and name not in parts.BOXES_ONLY
    assert any('mask' in part for part in losses) == (has_masks or name == parts.MASK2FORMER)
    assert any('aux' in part for part in losses) == (name == parts.UPERNET)
    assert model.backbone.stem.conv1.weight.grad.abs().max() > 0
    if name in parts.SEGMENTORS:  # a batch without labels teaches nothing wrong
        unlabelled = DATASETS.build(config.train_dataloader.dataset)[0]
        unlabelled['data_samples'].gt_sem_seg.data.fill_(255)
        backward(model, {key: [value] * 2 for key, value in unlabelled.items()})

    model.eval()
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
    assert ('coco/segm_mAP' in figures) == has_masks


@pytest.mark.parametrize('name', [*parts.BOXES_ONLY, parts.UPERNET])
def test_views_are_averaged(config, name):
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
