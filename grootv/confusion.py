"""What a network takes for what: counts by true and predicted class, of all tasks of images."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from grootv.datasets.summary import aligned
from grootv.errors import UserError, first

_SAFE = {
    ('_codecs', 'encode'),
    ('collections', 'OrderedDict'),
    ('numpy', 'dtype'),
    ('numpy', 'ndarray'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', 'scalar'),
    ('numpy._core.numeric', '_frombuffer'),
    ('torch._utils', '_rebuild_tensor_v2'),
}


class _Unpickler(pickle.Unpickler):
    """Makes tensors, arrays and plain values, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('torch.storage', '_load_from_bytes'):
            return lambda content: torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
        if (module, name) not in _SAFE:
            raise UserError(f'holds {module}.{name}, which is no prediction')
        return super().find_class(module, name)


def read_predictions(path: str | Path) -> list[dict]:
    """Read the predictions that ``tools/test.py --out`` has written, without running code from the file.

    Raises:
        UserError: If the file is missing, damaged, or holds anything else.
    """
    again = 'write them with tools/test.py --out FILE.pkl'
    try:
        with Path(path).open('rb') as file:
            samples = _Unpickler(file).load()
    except FileNotFoundError as error:
        raise UserError(f'predictions {path} do not exist: {again}') from error
    except UserError as error:
        raise UserError(f'predictions {path}: the file {error}: {again}') from error
    except Exception as error:  # pickle has no exception of its own for damage
        raise UserError(f'predictions {path} are cut short or no file of predictions: {again}') from error
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise UserError(f'predictions {path} are not a list with a dict for each image: {again}')
    return samples


class Confusion(BaseMetric):
    """Counts by true (row) and predicted class (column).

    Of boxes, the last row and column are the background: predictions of nothing and missed boxes. A
    prediction, in the order of the scores, takes the box of its class that it overlaps most, as in COCO's
    evaluation; those left over then take the boxes left over of any class. Predictions of nothing but a crowd
    are not counted. Of label maps, pixels are counted.

    Args:
        dataset: Test data, whose items the predictions are of.
        score_thr: Least score of a box.
        iou_thr: Least overlap of a box with the one that it is.
    """

    def __init__(self, dataset: Any, score_thr: float = 0.3, iou_thr: float = 0.5):
        super().__init__()
        self.classes = [str(name) for name in dataset.metainfo.get('classes') or ()]
        self.score_thr, self.iou_thr = score_thr, iou_thr
        self.truth: dict[Any, list[dict]] = {}
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        self.expected = len(dataset)
        for info in infos if hasattr(dataset, 'get_data_info') else ():
            if 'instances' in info:
                self.truth[info['img_id']] = info['instances']
        size = len(self.classes) + bool(self.truth)
        self.counts = np.zeros((size, size), dtype=np.int64)
        self.unit, self.seen = 'items', 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        for sample in data_samples:
            self.add(sample)

    def compute_metrics(self, results: list) -> dict:
        return {}

    def evaluate(self, size: int) -> dict:
        return {}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Count the predictions of an image."""
        self.seen += 1
        if 'pred_instances' in sample:
            self.unit = 'boxes'
            self._add_boxes(sample)
        elif 'pred_sem_seg' in sample:
            self.unit = 'pixels'
            true, found = (sample[key]['data'].flatten() for key in ('gt_sem_seg', 'pred_sem_seg'))
            self._add(true[true != 255], found[true != 255])
        elif 'pred_label' in sample:
            self.unit = 'images'
            if sample['gt_label'].numel() != 1:
                raise UserError('the images have several labels: a confusion matrix needs a single one')
            self._add(sample['gt_label'], sample['pred_label'].flatten()[:1])
        else:
            raise UserError(f'the predictions hold {first(sample)}, no label, boxes or label map')

    def check_complete(self) -> None:
        """Refuse the predictions of other data."""
        if self.seen != self.expected:
            raise UserError(
                f'the predictions are of {self.seen} images and the test data have {self.expected}: give the '
                'config that they were made with'
            )

    def _add(self, true: Tensor, found: Tensor) -> None:
        size = len(self.counts)
        pairs = torch.stack([true.long(), found.long()]).cpu().numpy()
        if pairs.size and not 0 <= pairs.min() <= pairs.max() < size:
            raise UserError(
                f'the predictions or labels hold the class {pairs.max()}, and the test data have '
                f'{len(self.classes)}: give the config that they were made with'
            )
        self.counts += np.bincount(size * pairs[0] + pairs[1], minlength=size**2).reshape(size, size)

    def _add_boxes(self, sample: Mapping[str, Any]) -> None:
        from mmdet.evaluation import bbox_overlaps

        if sample.get('img_id') not in self.truth:
            raise UserError(
                f'the predictions are of image {sample.get("img_id")}, which the test data do not have: give '
                'the config that they were made with'
            )
        truth = self.truth[sample['img_id']]
        found = {key: value.cpu() for key, value in sample['pred_instances'].items() if key != 'masks'}
        order = found['scores'].argsort(descending=True, stable=True)
        order = order[found['scores'][order] >= self.score_thr]
        boxes, labels = found['bboxes'][order].float().numpy(), found['labels'][order].numpy()
        crowds, wanted = (
            [box for box in truth if bool(box['ignore_flag']) == flag] for flag in (True, False)
        )
        true = np.array([box['bbox_label'] for box in wanted], dtype=int)
        overlaps = bbox_overlaps(boxes, corners(wanted))
        same = labels[:, None] == true[None]
        background = len(self.classes)
        partner = np.full(len(boxes), -1)
        for allowed in (same, ~same):
            match(np.where(allowed, overlaps, 0), self.iou_thr, partner)
        in_crowd = np.any(bbox_overlaps(boxes, corners(crowds), mode='iof') >= self.iou_thr, axis=1).tolist()
        missed = np.delete(true, partner[partner >= 0])
        pairs = [(true[j] if j >= 0 else background, label) for j, label in zip(partner, labels, strict=True)]
        pairs = [pair for pair, j, crowd in zip(pairs, partner, in_crowd, strict=True) if j >= 0 or not crowd]
        pairs += [(label, background) for label in missed]
        if pairs:
            self._add(*torch.tensor(np.array(pairs)).T)

    def table(self) -> list[str]:
        """Lines of a table with a row for each class, and their means."""
        size, right = len(self.classes), self.counts.diagonal()
        true, found = self.counts.sum(1)[:size], self.counts.sum(0)[:size]
        last = 'IoU %' if self.unit == 'pixels' else 'F1 %'
        rows, shares = [['', f'true {self.unit}', 'predicted', 'right', 'precision %', 'recall %', last]], []
        for name, t, p, r in zip(self.classes, true, found, right, strict=False):
            precision = (r, p) if p else (0, t)  # a class that is there and never predicted has 0
            both = (r, t + p - r) if self.unit == 'pixels' else (2 * r, t + p)
            shares.append([100 * a / b if b else np.nan for a, b in (precision, (r, t), both)])
            rows.append([name, *map(str, (t, p, r)), *map(percent, shares[-1])])
        columns = (column[~np.isnan(column)] for column in np.array(shares).T)
        means = [column.mean() if column.size else np.nan for column in columns]
        rows.append(['mean', '', '', '', *map(percent, means)])
        return aligned(rows)


def percent(share: float) -> str:
    return '-' if np.isnan(share) else f'{share:.1f}'


def corners(instances: list[dict]) -> np.ndarray:
    return np.array([box['bbox'] for box in instances], dtype=np.float32).reshape(-1, 4)


def match(overlaps: np.ndarray, least: float, partner: np.ndarray) -> None:
    """Give each row without a partner, in their order, the free column that it overlaps most.

    Args:
        overlaps: Shape (rows, columns).
        least: Smallest overlap of partners.
        partner: Column of each row, or -1; changed in place.
    """
    free = np.ones(overlaps.shape[1], dtype=bool)
    free[partner[partner >= 0]] = False
    for row in np.flatnonzero(partner < 0):
        if free.any():
            column = int(np.where(free, overlaps[row], -1).argmax())
            if overlaps[row, column] >= least and overlaps[row, column] > 0:
                partner[row], free[column] = column, False
