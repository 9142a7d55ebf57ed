"""The operators in place of mmcv's compiled ones: numbers, derivatives, results of mmcv's own."""

import subprocess
import sys

import pytest
import torch
from mmcv import ops
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch.autograd import gradcheck

from grootv.errors import UserError
from grootv.integrations import mmcv_ext
from tests.models import mmcv_reference

COMPILED = sys.modules['mmcv._ext']
WRAPPERS = [module for name, module in sys.modules.items() if name.startswith('mmcv.ops.')]


@pytest.fixture(autouse=True)
def operators(monkeypatch):
    """Functions that put the operators of this project, or mmcv's compiled ones, below mmcv's functions."""

    def use(extension) -> None:
        for wrapper in WRAPPERS:
            if hasattr(wrapper, 'ext_module'):
                monkeypatch.setattr(wrapper, 'ext_module', extension)

    use(mmcv_ext)
    return use


@pytest.fixture(params=['compiled', 'reference'])
def same(request, operators, monkeypatch):
    """A function of no arguments gives the same with mmcv's compiled operators, and with plain loops."""
    compiled = request.param == 'compiled'
    if compiled and COMPILED.__file__.endswith('.py'):
        pytest.skip('mmcv was installed without compiled operators')

    def compare(function) -> None:
        with monkeypatch.context() as patch:
            operators(COMPILED if compiled else mmcv_reference)
            if not compiled:
                patch.setattr(ops, 'roi_align', mmcv_reference.roi_align)
            expected = function()
        operators(mmcv_ext)
        torch.testing.assert_close(function(), expected)

    return compare


def boxes_of(count: int, size: float = 64) -> torch.Tensor:
    corners = torch.rand(count, 2, 2) * size
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def run(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-c', f'import tests.hide_operators\n{code}']
    return subprocess.run(command, capture_output=True, text=True)


def test_import_of_grootv_gives_mmcv_operators():
    code = 'import sys, grootv\nassert not {"torch", "mmcv"} & set(sys.modules)\nimport mmcv.ops, torch\n'
    box = 'torch.tensor([[0., 0, 2, 2], [0, 0, 2, 1.9]]), torch.tensor([0.1, 0.9])'
    result = run(f'{code}print(mmcv.ops.nms({box}, 0.5)[1], mmcv.ops.get_compiler_version())')
    assert result.stdout.startswith('tensor([1]) none (torchvision '), result.stderr


def test_grootv_is_imported_before_detection():
    result = run('import mmdet.structures\nimport grootv')
    assert result.stderr.endswith('mmdet.structures was imported without them: import grootv first\n')


def test_compiled_operators_are_preferred():
    code = 'import sys\nbefore = list(sys.meta_path)\nimport grootv\n'
    result = run(
        f'{code}assert sys.meta_path[:-1] == before\nprint(sys.meta_path[-1].find_spec("mmcv.other"))'
    )
    assert result.stdout == 'None\n', result.stderr


def test_operator_that_is_missing_is_named():
    layer = ops.DeformConv2d(2, 2, 1)
    with pytest.raises(
        UserError, match=r"mmcv's operator deform_conv_forward is not compiled, .*: run GROOTV"
    ):
        layer(torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3))
    assert not hasattr(mmcv_ext, '__path__')


def test_nms_keeps_an_overlap_of_just_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.8])
    assert ops.nms(boxes, scores, 0.6)[1].tolist() == [1, 2, 0]
    assert ops.nms(boxes, scores, 0.59)[1].tolist() == [1, 2]
    assert ops.nms(boxes, scores, 0.62, offset=1)[1].tolist() == [1, 2]  # 7 / 11 with borders of a pixel
    assert ops.nms(boxes[:0], scores[:0], 0.6)[0].shape == (0, 5)
    assert ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.59)[1].tolist() == [1, 2]


@pytest.mark.parametrize('kind', [dict(type='nms', max_num=20), dict(type='soft_nms', min_score=0.05)])
@pytest.mark.parametrize('count, classes', [(1, 1), (300, 1), (300, 80)])
@pytest.mark.parametrize('split', [10000, 100])
def test_batched_nms_is_that_of_mmcv(same, kind, count, classes, split):
    boxes, scores, labels = boxes_of(count) - 9, torch.rand(count), torch.randint(classes, (count,))
    same(lambda: ops.batched_nms(boxes, scores, labels, dict(kind, iou_threshold=0.5, split_thr=split)))
    same(lambda: ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=10))


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_is_that_of_mmcv(same, method, offset):
    for count in (0, 1, 200):
        boxes, scores = boxes_of(count), torch.rand(count)
        same(lambda: ops.soft_nms(boxes, scores, 0.3, method=method, min_score=0.02, offset=offset))  # noqa: B023


def test_soft_nms_multiplies_by_what_does_not_overlap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30]])
    dets, kept = ops.soft_nms(boxes, torch.tensor([0.5, 0.9, 0.8]), 0.3)
    assert kept.tolist() == [1, 2, 0]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.8, 0.5 * 0.4]))


def test_roi_align_takes_the_mean_or_the_maximum_of_samples():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    rois = torch.tensor([[0.0, 0, 0, 4, 4], [0, 2, 2, 2, 2], [0, 50, 50, 60, 60]])
    mean = ops.roi_align(image, rois, 2, 1.0, 2, 'avg', True).squeeze(1)
    assert mean.tolist() == [[[2.5, 4.5], [10.5, 12.5]], [[7.5] * 2] * 2, [[0.0] * 2] * 2]
    most = ops.roi_align(image, rois, 2, 1.0, 2, 'max', True).squeeze(1)
    assert most.tolist() == [[[5.0, 7.0], [13.0, 15.0]], [[7.5] * 2] * 2, [[0.0] * 2] * 2]
    with pytest.raises(RuntimeError, match='roi_align: RoIs need x1 <= x2'):
        ops.roi_align(image, torch.tensor([[0.0, 3, 0, 1, 4]]), 2)


POOLING = pytest.mark.parametrize('mode', ['avg', 'max'])
SAMPLES = pytest.mark.parametrize('samples', [0, 2])
ALIGNED = pytest.mark.parametrize('aligned', [True, False])
ROIS = torch.tensor(  # inside, over the edges, of one bin, far outside, a point
    [[0, 3, 2, 30, 25], [1, -8, -8, 12, 50], [1, 20, 18, 22, 19], [0, 90, 90, 99, 99], [1, 9, 9, 9, 9.0]]
)


@POOLING
@SAMPLES
@ALIGNED
def test_roi_align_is_that_of_mmcv(same, mode, samples, aligned):
    # The maximum of no samples is 0 here and -10000 there.
    rois = ROIS[:-1] if mode == 'max' and aligned and not samples else ROIS
    features = torch.randn(2, 3, 16, 20)
    weight = torch.randn(5, 3, 3, 4)

    def align(rois=rois):
        leaf = features.clone().requires_grad_()
        result = ops.roi_align(leaf, rois, (3, 4), 0.5, samples, mode, aligned)
        return result.detach(), torch.autograd.grad((result * weight[: len(rois)]).sum(), leaf)[0]

    same(align)
    same(lambda: align(rois[:0]))


@POOLING
@SAMPLES
@ALIGNED
def test_gradient_of_roi_align_is_its_derivative(mode, samples, aligned):
    features = torch.randn(2, 2, 8, 10, dtype=torch.float64, requires_grad=True)
    rois = ROIS.double()
    assert gradcheck(lambda x: ops.roi_align(x, rois, (2, 3), 0.25, samples, mode, aligned), features)


@POOLING
def test_roi_align_of_reduced_precision(mode):
    features = torch.randn(2, 3, 16, 20).bfloat16().float()
    expected = ops.roi_align(features, ROIS, 3, 0.5, 2, mode)
    result = ops.roi_align(features.bfloat16().requires_grad_(), ROIS.bfloat16(), 3, 0.5, 2, mode)
    assert torch.equal(result, expected.bfloat16())
    result.sum().backward()


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.0, 0.5), (0.5, 0.9)])
def test_focal_loss_is_that_of_mmdet(gamma, alpha):
    logits = torch.cat([torch.randn(6, 4) * 3, torch.tensor([[200.0, -200, 0, 80]] * 2)])
    logits, target = logits.double().requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 4, 0, 1])
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    loss = ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, 'none')
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=gamma, alpha=alpha, reduction='none')
    torch.testing.assert_close(loss, expected)
    weight = torch.rand(8, 4)
    (gradient,) = torch.autograd.grad((loss * weight).sum(), logits)
    assert gradient.isfinite().all()
    (expected,) = torch.autograd.grad((expected * weight).sum(), logits)
    torch.testing.assert_close(gradient[:6], expected[:6])
    assert not ops.sigmoid_focal_loss(logits[:0], target[:0], gamma, alpha, None, 'sum')


def test_focal_loss_weighs_the_rows_of_a_class():
    logits, target, weight = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 2, 1, 2]), torch.rand(3)
    plain = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    torch.testing.assert_close(loss, plain * weight[target, None])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    (expected,) = torch.autograd.grad((plain * weight[target, None]).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_deformable_attention_and_its_gradients():
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    shapes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    inputs = [torch.rand(2, 26, 2, 4), torch.rand(2, 7, 2, 2, 3, 2) * 1.2 - 0.1, torch.rand(2, 7, 2, 2, 3)]
    value, locations, weights = (tensor.requires_grad_() for tensor in inputs)
    result = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    assert torch.equal(result, expected)
    grad, leaves = torch.rand(2, 7, 8), (value, locations, weights)
    for ours, plain in zip(
        torch.autograd.grad(result, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(ours, plain)
