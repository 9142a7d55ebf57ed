"""NMS of ``mmcv._ext`` and RoIAlign of ``mmcv.ops`` in plain loops, from their definitions."""

import itertools
import math

import torch
from torch import Tensor


def overlap(a: list[float], b: list[float], offset: int) -> float:
    """Intersection over union of two boxes that are x2 - x1 + offset wide."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b))
    return both / (areas - both)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    corners, kept = boxes.tolist(), []
    for index in scores.sort(descending=True)[1].tolist():
        if all(overlap(corners[index], corners[other], offset) <= iou_threshold for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long)


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset) -> Tensor:
    left, corners, kept = dict(enumerate(scores.tolist())), boxes.tolist(), []
    while left:
        best = max(left, key=left.__getitem__)
        dets[len(kept)] = torch.tensor([*corners[best], left.pop(best)])
        kept.append(best)
        for other in list(left):
            iou = overlap(corners[best], corners[other], offset)
            if method == 2:
                left[other] *= math.exp(-iou * iou / sigma)
            elif iou >= iou_threshold:
                left[other] *= (1 - iou) * method
            if left[other] < min_score:
                del left[other]
    return torch.tensor(kept, dtype=torch.long)


def sample(feature: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value of a map (C, H, W), 0 further than a pixel outside of it."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return feature[:, 0, 0] * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = feature[:, top, left] * (1 - x + left) + feature[:, top, right] * (x - left)
    below = feature[:, bottom, left] * (1 - x + left) + feature[:, bottom, right] * (x - left)
    return above * (1 - y + top) + below * (y - top)


def roi_align(features, rois, size, spatial_scale, sampling_ratio, pool_mode, aligned) -> Tensor:
    """mmcv.ops.roi_align, which PyTorch differentiates."""
    bins = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * spatial_scale - 0.5 * aligned for corner in corners)
        sides = [max(side, 0 if aligned else 1) for side in (y2 - y1, x2 - x1)]
        steps = [side / number for side, number in zip(sides, size, strict=True)]
        rows, columns = (sampling_ratio or math.ceil(step) for step in steps)
        samples = list(itertools.product(range(rows), range(columns)))
        for i, j in itertools.product(range(size[0]), range(size[1])):
            found = [
                sample(
                    features[int(index)],
                    y1 + (i + (a + 0.5) / rows) * steps[0],
                    x1 + (j + (b + 0.5) / columns) * steps[1],
                )
                for a, b in samples
            ]
            values = torch.stack(found or [features[0, :, 0, 0] * 0])
            bins.append(values.mean(0) if pool_mode == 'avg' else values.amax(0))
    rows = torch.stack(bins) if bins else features[:0, :, 0, 0]
    return rows.view(len(rois), *size, features.shape[1]).permute(0, 3, 1, 2)
