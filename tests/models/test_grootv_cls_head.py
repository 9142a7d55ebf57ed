import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample

from grootv.models import GrootVClsHead

CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=dict(type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 1, 1, 1])),
    head=dict(type='grootv.GrootVClsHead', num_classes=5, in_channels=64, topk=(1, 2)),
    data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=5),
)


def samples(*labels):
    return [DataSample().set_gt_label(label) for label in labels]


def test_the_last_map_is_pooled_and_classified():
    head = GrootVClsHead(num_classes=3, in_channels=4).eval()
    early, last = torch.randn(2, 2, 8, 8), torch.randn(2, 4, 3, 5)
    features = head.project(last).mean((2, 3))
    assert features.shape == (2, 6)
    torch.testing.assert_close(head.pre_logits((early, last)), features)
    torch.testing.assert_close(head((early, last)), head.fc(features))


def test_loss_and_predictions():
    head = GrootVClsHead(num_classes=5, in_channels=8, cal_acc=True, topk=(1, 2))
    feats = (torch.randn(2, 8, 2, 2),)
    losses = head.loss(feats, samples(0, 4))
    assert set(losses) == {'loss', 'accuracy_top-1', 'accuracy_top-2'}
    losses['loss'].backward()
    assert all(p.grad is not None for p in head.parameters())
    head.eval()
    for prediction, logits in zip(head.predict(feats, samples(1, 2)), head(feats), strict=True):
        torch.testing.assert_close(prediction.pred_score, logits.softmax(0))
        assert prediction.pred_label.item() == logits.argmax()


def test_features_and_averaged_predictions_of_a_classifier():
    torch.manual_seed(0)
    model = MMPRETRAIN_MODELS.build(CLASSIFIER).eval()
    x = torch.randn(2, 3, 32, 40)
    assert model.extract_feat(x, stage='pre_logits').shape == (2, 96)
    tta = MMPRETRAIN_MODELS.build(dict(type='AverageClsScoreTTA', module=model))
    views = [x, x.flip(3)]
    merged = tta.test_step(
        dict(inputs=[list(view) for view in views], data_samples=[samples(1, 2) for _ in views])
    )
    mean = sum(model(view).softmax(1) for view in views) / 2
    torch.testing.assert_close(torch.stack([sample.pred_score for sample in merged]), mean)


def test_no_classes_is_an_error():
    with pytest.raises(ValueError, match=r'^GrootVClsHead: num_classes must be at least 1, got 0'):
        GrootVClsHead(num_classes=0, in_channels=8)


def test_a_compiler_sees_no_convolution_and_keeps_the_layout_of_maps():
    names = []
    model = MMPRETRAIN_MODELS.build(CLASSIFIER).eval()
    backend = lambda graph, _: names.extend(str(node.target) for node in graph.graph.nodes) or graph  # noqa: E731
    with torch.no_grad():
        torch.compile(model, fullgraph=True, backend=backend)(torch.randn(1, 3, 32, 32))
    assert any('grootv_opaque.convolve' in name for name in names)
    assert not any('conv2d' in name for name in names)
