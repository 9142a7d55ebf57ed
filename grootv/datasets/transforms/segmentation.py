"""Label maps, with the file's name in what is wrong with them."""

from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from grootv.errors import UserError
from grootv.registry import TRANSFORMS

_EIGHT_BITS = 255


@TRANSFORMS.register_module()
class LoadSegAnnotations(BaseTransform):
    """mmseg's LoadAnnotations with the file's name in every failure.

    Args:
        **kwargs: As for :class:`mmseg.datasets.LoadAnnotations`.

    Raises:
        UserError: If the label map is missing, cut short or no image.
    """

    def __init__(self, **kwargs):
        self.loader = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations', **kwargs))

    def transform(self, results: dict) -> dict:
        try:
            return self.loader(results)
        except FileNotFoundError:
            reason = 'it does not exist'
        except Exception as error:  # each decoder has its own exceptions
            reason = ' '.join(str(error).split())
        raise UserError(
            f'label map {results["seg_map_path"]} of image {results["img_path"]} cannot be read ({reason}): '
            'replace the file, or remove the image from the data'
        )


@TRANSFORMS.register_module()
class CheckSegLabels(BaseTransform):
    """Refuse a label map that the heads cannot learn from; stands right after the map is loaded.

    A label without a class stops a training on a GPU with an assertion of a kernel, and one above 255
    becomes another class: mmseg keeps the lowest eight bits.

    Args:
        num_classes: Classes of the heads.
        ignore_index: Label of pixels that count for nothing.

    Raises:
        UserError: If the map has a label outside 0 to ``num_classes - 1``, more than one channel, or
            another size than the image. Labels are told as the file holds them, before
            ``reduce_zero_label``.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        if 'gt_seg_map' not in results:  # inference
            return results
        labels = results['gt_seg_map']
        shift = int(bool(results.get('reduce_zero_label')))
        name = f'label map {results["seg_map_path"]}'
        if labels.ndim != 2:
            raise UserError(
                f'{name} has {labels.shape[-1]} channels, and one is needed that holds the number of the '
                'class of every pixel: convert colours to numbers'
            )
        if labels.shape != tuple(results['ori_shape']):
            sizes = [f'{width} x {height}' for height, width in (labels.shape, results['ori_shape'])]
            raise UserError(
                f'{name} is {sizes[0]} pixels and its image {results["img_path"]} {sizes[1]}: '
                'both must have one size'
            )
        found = self._foreign_label(labels, shift, results['seg_map_path'])
        if found is not None:
            unlabelled = f'0 or {self.ignore_index}' if shift else str(self.ignore_index)
            raise UserError(
                f'{name} holds the label {found}, and {self.num_classes} classes are numbered {shift} to '
                f'{self.num_classes - 1 + shift} ({unlabelled} for none): mend the map, or set num_classes '
                'of grootv.CheckSegLabels and of the heads'
            )
        return results

    def _foreign_label(self, labels: np.ndarray, shift: int, path: str) -> int | None:
        largest = largest_label(path)
        if largest > _EIGHT_BITS:
            return largest
        foreign = (labels >= self.num_classes) & (labels != self.ignore_index)
        return int(labels[foreign].min()) + shift if foreign.any() else None


def largest_label(path: str) -> int:
    """The largest label of a local image of more than eight bits; 0, and nothing decoded, for others."""
    if not Path(path).is_file():
        return 0
    with Image.open(path) as image:
        return int(image.getextrema()[1]) if image.mode.startswith('I') else 0
