"""The operators of ``mmcv._ext`` that detection and segmentation call, by torchvision and PyTorch.

Signatures are those of mmcv 2, which writes results into tensors that it has allocated. CUDA tensors go to
torchvision's CUDA kernels. bfloat16 and float16 are computed in float32. Other operators raise at their call.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from grootv.errors import UserError


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """An operator that is not here; mmcv looks for all of its operators when it is imported."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise UserError(
            f"mmcv's operator {name} is not compiled, and grootv has no other form of it: "
            'run GROOTV_COMPILE_MMCV=1 python tools/setup_environment.py demo-detection'
        )

    return missing


def get_compiler_version() -> str:
    return f'none (torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    return f'none (torchvision {torchvision.__version__})'


def _computable(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes, by descending score; a box is as wide as x2 - x1 + offset."""
    # Equal scores have mmcv's order, and its comparison with the threshold is one in single precision.
    scores, order = _computable(scores).sort(descending=True)
    boxes = _computable(boxes)[order]
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return order[torchvision.ops.nms(boxes, scores, torch.tensor(iou_threshold).item())]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices by descending decayed score; the first rows of ``dets`` become the boxes with these scores.

    Args:
        boxes: Shape (N, 4).
        scores: Shape (N,).
        dets: Result, shape (N, 5).
        iou_threshold: Overlap from which methods 0 and 1 reduce a score.
        sigma: Width of method 2.
        min_score: A box whose score falls below is removed.
        method: 0: remove overlapping boxes; 1: multiply by 1 - IoU; 2: by exp(-IoU² / sigma).
        offset: 0 or 1; a box is as wide as x2 - x1 + offset.
    """
    left, right = boxes[:, :2], boxes[:, 2:] + offset
    scores, areas = scores.clone(), (right - left).prod(dim=1)
    rest, kept = torch.arange(len(boxes)), []
    while len(rest):
        best = rest[scores[rest].argmax()]
        dets[len(kept)] = torch.cat([boxes[best], scores[best, None]])
        kept.append(best)
        rest = rest[rest != best]
        sides = torch.minimum(right[best], right[rest]) - torch.maximum(left[best], left[rest])
        overlap = sides.clamp(min=0).prod(dim=1)
        iou = overlap / (areas[best] + areas[rest] - overlap)
        if method == 2:
            weight = torch.exp(-(iou**2) / sigma)
        else:
            weight = torch.where(iou >= iou_threshold, (1 - iou) * method, 1.0)
        scores[rest] *= weight
        rest = rest[~(scores[rest] < min_score)]
    return torch.stack(kept) if kept else rest


def _by_grid(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, int, int]]:
    """Indices of the RoIs with equal numbers of samples in a bin, and these numbers, unless they are 0."""
    ratios = rois.new_full((len(rois), 2), sampling_ratio)
    if sampling_ratio <= 0:  # rounded like the kernels
        corners = rois[:, 1:] * spatial_scale - 0.5 * aligned
        sides = (corners[:, 2:] - corners[:, :2]).clamp(min=0 if aligned else 1)
        ratios = torch.ceil(sides.flip(1) / sides.new_tensor(size))
    for grid in ratios.unique(dim=0):
        height, width = (int(number) for number in grid)
        if height and width:
            yield (ratios == grid).all(dim=1).nonzero().squeeze(1), height, width


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the features of each RoI into ``output``, the mean or the maximum of samples.

    Args:
        input: Shape (B, C, H, W).
        rois: Index in the batch, x1, y1, x2, y2 in pixels of the image, shape (K, 5).
        output: Result, shape (K, C, aligned_height, aligned_width). 0 for a maximum of no samples.
        argmax_y: Row of the maximum among the samples of the RoI, shape of ``output``; not used for the mean.
        argmax_x: Its column.
        aligned_height: Rows of the result.
        aligned_width: Its columns.
        spatial_scale: Height of the features divided by that of the image.
        sampling_ratio: Samples of a bin in either direction; 0: as many as it has pixels.
        pool_mode: 1: mean, 0: maximum.
        aligned: Whether the centre of a pixel is at a half instead of a whole number.
    """
    if aligned and (rois[:, 3:] < rois[:, 1:3]).any():
        raise RuntimeError('roi_align: RoIs need x1 <= x2 and y1 <= y2')
    size, features, rois = (aligned_height, aligned_width), _computable(input), _computable(rois)
    if pool_mode == 1:
        output.copy_(torchvision.ops.roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned))
        return
    for chosen, height, width in _by_grid(rois, size, spatial_scale, sampling_ratio, aligned):
        fine = (size[0] * height, size[1] * width)
        samples = torchvision.ops.roi_align(features, rois[chosen], fine, spatial_scale, 1, aligned)
        found, index = F.max_pool2d(samples, (height, width), return_indices=True)
        output[chosen] = found.to(output)
        argmax_y[chosen] = (index // fine[1]).to(argmax_y)
        argmax_x[chosen] = (index % fine[1]).to(argmax_x)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` with respect to its input into ``grad_input``."""
    size, rois = (aligned_height, aligned_width), _computable(rois)
    # The mean is linear in the features, so that any features have its gradient.
    features = torch.zeros_like(grad_input, dtype=rois.dtype)

    def add(rois: Tensor, size: tuple[int, int], sampling_ratio: int, grad: Tensor) -> None:
        def mean(features: Tensor) -> Tensor:
            return torchvision.ops.roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned)

        grad_input.add_(_pull_back(mean, [features], grad)[0])

    if pool_mode == 1:
        add(rois, size, sampling_ratio, grad_output)
        return
    for chosen, height, width in _by_grid(rois, size, spatial_scale, sampling_ratio, aligned):
        fine = (size[0] * height, size[1] * width)
        index = argmax_y[chosen].long() * fine[1] + argmax_x[chosen].long()
        samples = features.new_zeros(len(chosen), grad_input.shape[1], fine[0] * fine[1])
        samples.scatter_(2, index.flatten(2), grad_output[chosen].flatten(2).to(samples))
        add(rois[chosen], fine, 1, samples.unflatten(2, fine))


def _pull_back(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a function with respect to its inputs, from that with respect to its result."""
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        result = function(*leaves)
        return torch.autograd.grad(result, leaves, grad.to(result))


def _one_hot(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of every logit into ``output``.

    Args:
        input: Logits, shape (N, C).
        target: Class, shape (N,); C or more: none.
        weight: Factor of the rows of a class, shape (C,), or empty.
        output: Result, shape (N, C).
        gamma: Exponent of the probability of the wrong answer.
        alpha: Weight of the class; 1 - alpha is that of the others.
    """
    logits = _computable(input)
    p = logits.sigmoid()
    of_class = -alpha * (1 - p) ** gamma * F.logsigmoid(logits)
    of_others = -(1 - alpha) * p**gamma * F.logsigmoid(-logits)
    output.copy_(torch.where(_one_hot(input, target), of_class, of_others))
    if weight.numel():
        output *= weight[target, None]


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` of every logit into ``grad_input``."""
    logits = _computable(input)
    p = logits.sigmoid()
    of_class = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * F.logsigmoid(logits))
    of_others = -(1 - alpha) * p**gamma * (gamma * (1 - p) * F.logsigmoid(-logits) - p)
    grad_input.copy_(torch.where(_one_hot(input, target), of_class, of_others))
    if weight.numel():
        grad_input *= weight[target, None]


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention, by mmcv's own form in PyTorch, which it uses on the CPU."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch as attend

    features, locations, weights = map(_computable, (value, sampling_locations, attention_weights))
    return attend(features, value_spatial_shapes.cpu(), locations, weights).to(value)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward` into the three tensors."""

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes, starts = value_spatial_shapes, value_level_start_index
        return ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step)

    found = _pull_back(attend, [value, sampling_locations, attention_weights], grad_output)
    for grad, result in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        grad.copy_(result)
