"""Read images and label maps, or name the file that is wrong."""

import io
from pathlib import Path

import mmcv
import mmcv.image.io
import mmcv.transforms
import numpy as np
from mmengine import fileio
from PIL import Image, UnidentifiedImageError

from grootv.datasets.images import check_size, eight_bits, has_deep_pixels, reason, unreadable
from grootv.datasets.summary import numbered
from grootv.errors import UserError
from grootv.registry import TRANSFORMS

_MMCV_READS = mmcv.image.io.imfrombytes


def imfrombytes(
    content: bytes, flag: str = 'color', channel_order: str = 'bgr', backend: str | None = None
) -> np.ndarray:
    """:func:`mmcv.imfrombytes` with one rule for deep pixels, whatever the backend.

    Raises:
        ValueError: As :func:`eight_bits`, or if Pillow does not know the format.
    """
    if flag in ('color', 'grayscale'):
        try:
            with Image.open(io.BytesIO(content)) as image:
                if has_deep_pixels(image):
                    grey = eight_bits(image)
                    pixels = np.asarray(grey.convert('RGB' if flag == 'color' else 'L'))
                    return pixels if channel_order == 'rgb' or flag == 'grayscale' else pixels[..., ::-1]
        except UnidentifiedImageError:
            raise ValueError('no image in a format that Pillow reads') from None
    pixels = _MMCV_READS(content, flag, channel_order, backend)
    if pixels is None:
        raise ValueError('no image')  # OpenCV has no exceptions
    return pixels


def read_deep_pixels_alike() -> None:
    """Let all of MMCV's and OpenMMLab's loading and inference read images by :func:`imfrombytes`."""
    for module in (mmcv, mmcv.image, mmcv.image.io):
        module.imfrombytes = imfrombytes  # pyright: ignore[reportAttributeAccessIssue]: MMCV's own name


read_deep_pixels_alike()


@TRANSFORMS.register_module()
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """MMCV's loader with the file's name in every failure, inside a data-loading process too.

    Grey images of 12 or 16 bits are scaled by the range of their type. An image that is loaded already stays:
    mmpretrain's inferencer reads it itself.

    Args:
        imdecode_backend: Decoder. Pillow is the default because it refuses a truncated file, where
            OpenCV fills the missing part with grey and continues.
        **kwargs: As for :class:`mmcv.transforms.LoadImageFromFile`.

    Raises:
        UserError: If the file is missing, truncated or not an image, its pixels are 32-bit integers or
            floats, or its size is not that of the annotations.
    """

    def __init__(self, *, imdecode_backend: str = 'pillow', **kwargs):
        super().__init__(imdecode_backend=imdecode_backend, **kwargs)

    def transform(self, results: dict) -> dict | None:
        if 'img' in results and 'img_path' not in results:
            return results
        path = results['img_path']
        try:
            image = self._read(path)
        except Exception as error:  # each decoder has its own exceptions
            if self.ignore_empty:
                return None
            raise unreadable(path, error) from None
        size = image.shape[:2]
        check_size(path, size, (results.get('height'), results.get('width')))
        return results | dict(img=image, img_shape=size, ori_shape=size)

    def _read(self, path: str) -> np.ndarray:
        content = fileio.get(path, backend_args=self.backend_args)
        pixels = imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        return pixels.astype(np.float32) if self.to_float32 else pixels


@TRANSFORMS.register_module()
class LoadSegAnnotations(mmcv.transforms.BaseTransform):
    """mmseg's LoadAnnotations with the file's name in every failure.

    Args:
        **kwargs: As for :class:`mmseg.datasets.LoadAnnotations`.

    Raises:
        UserError: If the label map is missing, cut short or not an image.
    """

    def __init__(self, **kwargs):
        self.loader = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations', **kwargs))

    def transform(self, results: dict) -> dict:
        try:
            return self.loader(results)
        except Exception as error:  # each decoder has its own exceptions
            path = results['seg_map_path']
            raise UserError(
                f'label map {path} of image {results["img_path"]} cannot be read ({reason(error, path)}): '
                'replace the file, or remove the image from the data'
            ) from None


@TRANSFORMS.register_module()
class CheckSegLabels(mmcv.transforms.BaseTransform):
    """Refuse a label map that the heads cannot learn from; comes right after the map is loaded.

    A label without a class stops a training on a GPU with an assertion of a kernel, and one above 255
    becomes another class: mmseg keeps the lowest eight bits.

    Args:
        num_classes: Classes of the heads.
        ignore_index: Label of pixels that count for nothing.

    Raises:
        UserError: If the map has a label outside 0 to ``num_classes - 1``, more than one channel, or
            another size than the image. Labels are reported as the file holds them, before
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
        self.check_channels(results)
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
                f'{name} holds the label {found}, and {numbered(self.num_classes, shift)} '
                f'({unlabelled} for none): fix the map, or set num_classes '
                'of grootv.CheckSegLabels and of the heads'
            )
        return results

    @staticmethod
    def check_channels(results: dict) -> None:
        """Refuse a map of colours."""
        labels = results['gt_seg_map']
        if labels.ndim != 2:
            raise UserError(
                f'label map {results["seg_map_path"]} has {labels.shape[-1]} channels, and one is needed '
                'that holds the number of the class of every pixel: convert colours to numbers with '
                'tools/dataset_converters/colour_masks.py'
            )

    def _foreign_label(self, labels: np.ndarray, shift: int, path: str) -> int | None:
        if Path(path).is_file():
            with Image.open(path) as image:  # decodes nothing but images of more than eight bits
                largest = int(np.max(image.getextrema())) if image.mode.startswith('I') else 0
            if largest > 255:
                return largest
        foreign = (labels >= self.num_classes) & (labels != self.ignore_index)
        return int(labels[foreign].min()) + shift if foreign.any() else None
