"""Every segmentor of the configs trains and tests, small, on a miniature of ADE20K."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS
from mmengine.runner import Runner

from .parts import on, shrink, start, train_once
from .segmentation import LANDSCAPE, ONE_OF_EACH, RATIOS, UPERNET, load, samples

CHANNELS = [8, 16, 32, 64]
WIDTH = 32
ATTENTION = dict(embed_dims=WIDTH)
FEED_FORWARD = dict(embed_dims=WIDTH, feedforward_channels=WIDTH)
SMALL_HEADS = {
    'upernet': dict(
        decode_head=dict(in_channels=CHANNELS, channels=WIDTH),
        auxiliary_head=dict(in_channels=CHANNELS[2], channels=WIDTH),
    ),
    'fpn': dict(
        neck=dict(in_channels=CHANNELS, out_channels=WIDTH),
        decode_head=dict(in_channels=[WIDTH] * 4, channels=WIDTH),
    ),
    'mask2former': dict(
        decode_head=dict(
            in_channels=CHANNELS,
            feat_channels=WIDTH,
            out_channels=WIDTH,
            num_queries=10,
            pixel_decoder=dict(
                encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=ATTENTION, ffn_cfg=FEED_FORWARD)),
                positional_encoding=dict(num_feats=WIDTH // 2),
            ),
            positional_encoding=dict(num_feats=WIDTH // 2),
            transformer_decoder=dict(
                num_layers=2,
                layer_cfg=dict(self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION, ffn_cfg=FEED_FORWARD),
            ),
            train_cfg=dict(num_points=64),
        ),
    ),
}


def head(name: str) -> str:
    return name.split('_')[1]


def small(ade: Path, name: str) -> Config:
    """The config on the small data, with a small model and crops of 64 x 64."""
    config = on(ade, load(name))
    shrink(config, 8)
    config.merge_from_dict(dict(model=SMALL_HEADS[head(name)]))
    config.model.data_preprocessor.size = (64, 64)
    return config


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_a_training_step(ade, name):
    config = small(ade, name)
    config.train_dataloader.batch_size = 2
    model = start(config).train()
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    data = model.data_preprocessor(batch, training=True)
    assert data['inputs'].shape == (2, 3, 64, 64)
    parts = train_once(config, model, data)
    assert any('aux' in part for part in parts) == (head(name) == 'upernet')


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_a_batch_without_labels_teaches_nothing_wrong(ade, name):
    config = small(ade, name)
    model = start(config).train()
    unlabelled = samples(ade, config, 'train')[2]
    batch = {key: [unlabelled[key]] * 2 for key in ('inputs', 'data_samples')}
    loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_predictions(ade, name):
    config = small(ade, name)
    model = start(config).eval()
    loader = Runner.build_dataloader(config.test_dataloader)
    metric = Evaluator(config.test_evaluator)
    metric.dataset_meta = loader.dataset.metainfo
    assert len(loader.dataset.metainfo['classes']) == 150
    for batch in loader:
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        labels = sample.pred_sem_seg.data
        assert labels.shape == (1, *sample.ori_shape) == sample.gt_sem_seg.data.shape
        assert ((labels >= 0) & (labels < 150)).all()
        metric.process([sample], batch)
    assert 0 <= metric.evaluate(len(loader.dataset))['mIoU'] <= 100


def test_views_are_averaged(ade):
    config = small(ade, UPERNET[0])
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    model = MODELS.build(dict(**config.tta_model, module=config.model)).eval()
    model.init_weights()
    batch = next(iter(Runner.build_dataloader(config.test_dataloader)))
    with torch.no_grad():
        (sample,) = model.test_step(batch)
        views = [
            model.module.test_step(dict(inputs=inputs, data_samples=data_samples))[0]
            for inputs, data_samples in zip(batch['inputs'], batch['data_samples'], strict=True)
        ]
    assert len(views) == 2 * len(RATIOS)
    scores = sum(view.seg_logits.data.softmax(0) for view in views)
    assert sample.pred_sem_seg.shape == LANDSCAPE[::-1]
    assert torch.equal(sample.pred_sem_seg.data, scores.argmax(0, keepdim=True))
