"""Every detector of the configs trains and tests, small, on a miniature of COCO."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from PIL import Image

from .detection import BOXES_ONLY, CONFIGS, DINO, LANDSCAPE, ONE_OF_EACH, load
from .parts import on, shrink, start, train_once


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
    shrink(config, 10)
    if name == DINO:
        config.model.bbox_head.embed_dims = config.model.neck.out_channels
    return config


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_a_training_step(coco, name):
    config = small(coco, name)
    model = start(config).train()
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    assert len(batch['inputs']) == 2
    parts = train_once(config, model, model.data_preprocessor(batch, training=True))
    assert any('mask' in part for part in parts) == (name not in BOXES_ONLY)


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

    from grootv.checkpoint import install_safe_loader

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
