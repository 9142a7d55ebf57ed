"""COCO annotations, checked while they are read. Importing this module needs mmdet."""

import json
import logging
import math
from typing import Any

import mmdet.datasets
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from grootv.errors import UserError, first
from grootv.registry import DATASETS

_SECTIONS = ('images', 'annotations', 'categories')
_IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
_BOX_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
_MOST_PIXELS = 178_956_970  # Pillow reads no larger image


@DATASETS.register_module()
class CocoDataset(mmdet.datasets.CocoDataset):
    """mmdet's data set, which reports in a sentence what is wrong with its annotation file.

    The file is parsed once, as mmdet does, and looked through before the index is built. Boxes that
    mmdet leaves out (outside their image, or smaller than a pixel) are counted in one warning.

    Args:
        *args: As for :class:`mmdet.datasets.CocoDataset`.
        **kwargs: Likewise.

    Raises:
        UserError: If the file is missing, does not parse or is not a COCO file; if images, categories or
            annotations contradict each other; if nothing in it can be trained on.
    """

    def COCOAPI(self, path: str) -> COCO:
        """The index of the file; mmdet asks for it by this name."""
        content = self._read(path)
        self._check_sections(content)
        sizes = self._check_images(content['images'])
        wanted, others = self._check_categories(content['categories'])
        self._check_annotations(content.setdefault('annotations', []), sizes, wanted, others)
        index = COCO()
        index.dataset = content
        index.createIndex()
        index.img_ann_map, index.cat_img_map = index.imgToAnns, index.catToImgs
        return index

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:
            raise self._fault(f'leaves none of its {len(self.data_list)} images after {self.filter_cfg}')
        if not self.test_mode and not any(image['instances'] for image in kept):
            raise self._fault('has no box to learn from')
        return kept

    def _fault(self, fault: str) -> UserError:
        return UserError(
            f'annotation file {self.ann_file} {fault}: fix the file, or give another one as ann_file'
        )

    def _read(self, path: str) -> Any:
        try:
            with open(path, encoding='utf-8') as file:
                return json.load(file)
        except FileNotFoundError as error:
            raise UserError(
                f'annotation file {self.ann_file} does not exist: check data_root and ann_file'
            ) from error
        except json.JSONDecodeError as error:
            place = f'line {error.lineno}, column {error.colno}'
            raise self._fault(f'is cut short or not JSON, {place}: {error.msg}') from error
        except UnicodeDecodeError as error:
            raise self._fault(f'is not text: {error.reason} at byte {error.start}') from error

    def _check_sections(self, content: Any) -> None:
        if not isinstance(content, dict):
            raise self._fault(f'is not a COCO file: it holds a {type(content).__name__}, not an object')
        optional = {'annotations'} if self.test_mode else set()
        absent = [name for name in _SECTIONS if name not in content and name not in optional]
        if absent:
            raise self._fault(f'is not a COCO file: it has no {" and no ".join(absent)}')
        for name in _SECTIONS:
            if not isinstance(content.get(name, []), list):
                raise self._fault(f'is not a COCO file: its {name} are not a list')
        if not self.test_mode and not content['annotations']:
            raise self._fault('has no annotations, so there is nothing to learn from')

    def _check_images(self, images: list) -> dict[Any, tuple[float, float]]:
        """Width and height by image id."""
        sizes = {}
        for position, image in enumerate(images):
            try:
                identity, _, width, height = (image[key] for key in _IMAGE_KEYS)
                known = identity in sizes
                positive = width > 0 and height > 0 and width * height <= _MOST_PIXELS
            except (KeyError, TypeError):
                keys = ', '.join(_IMAGE_KEYS)
                raise self._fault(f'has an image without valid {keys}: images[{position}]') from None
            if known:
                raise self._fault(f'has two images with id {identity}')
            if not positive:
                raise self._fault(
                    f'gives image {identity} the size {width} x {height}, which no image of up to '
                    f'{_MOST_PIXELS} pixels has'
                )
            sizes[identity] = width, height
        return sizes

    def _check_categories(self, categories: list) -> tuple[set, set]:
        """Ids of the categories that the config names, and of the others."""
        try:
            names = {category['id']: category['name'] for category in categories}
        except (KeyError, TypeError):
            raise self._fault('has a category without id and name') from None
        if len(names) < len(categories) or len(set(names.values())) < len(names):
            raise self._fault('has two categories with the same id or name')
        classes = self.metainfo['classes']
        if isinstance(classes, str):
            raise UserError(f'metainfo.classes must be a tuple of names, got the text {classes!r}')
        labels = [name for name in names.values() if name in classes]
        if not labels:
            raise UserError(
                f'annotation file {self.ann_file} has none of the classes of the config ({first(classes)}), '
                f'but {first(names.values())}: set metainfo.classes to names of the file'
            )
        if labels != list(classes):
            self._warn(
                f'numbers its classes {first(labels)} in this order, and the config names {first(classes)}: '
                'pictures and tables carry wrong names until metainfo.classes are those of the file'
            )
        wanted = {identity for identity, name in names.items() if name in classes}
        return wanted, names.keys() - wanted

    def _check_annotations(self, annotations: list, sizes: dict, wanted: set, others: set) -> None:
        masks = any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms)
        skipped = []
        for annotation in annotations:
            try:
                x, y, width, height = annotation['bbox']
                image_width, image_height = sizes[annotation['image_id']]
                seen = min(x + width, image_width) > max(x, 0) and min(y + height, image_height) > max(y, 0)
                area = annotation['area'] > 0
                sound = math.isfinite(x + y + width + height + annotation['area']) and 'id' in annotation
                category = annotation['category_id']
                if not sound or (category not in wanted and category not in others):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                raise self._fault(describe(annotation, sizes, wanted | others)) from None
            if not is_drawable(annotation.get('segmentation') or [], image_width, image_height):
                raise self._fault(
                    f'has in annotation {annotation["id"]} a segmentation that is not of its image of '
                    f'{image_width} x {image_height}: polygons are lists of finite x, y, ... at most one '
                    'side of the image outside it, run lengths add up to its pixels'
                )
            if category not in wanted or annotation.get('ignore'):
                continue
            if not seen or not area or width < 1 or height < 1:
                skipped.append(annotation['id'])
            elif masks and not annotation.get('segmentation'):
                raise self._fault(f'has no segmentation in annotation {annotation["id"]}, and with_mask=True')
        if skipped:
            self._warn(
                f'has {len(skipped)} boxes that are left out, outside their image or smaller than a pixel '
                f'(annotations {first(skipped)})'
            )

    def _warn(self, text: str) -> None:
        print_log(f'annotation file {self.ann_file} {text}', 'current', logging.WARNING)


def describe(annotation: Any, sizes: dict, categories: set) -> str:
    """What is wrong with an annotation, to follow the name of its file."""
    if not isinstance(annotation, dict):
        return f'has an annotation that is not an object: {annotation!r:.60}'
    absent = [key for key in _BOX_KEYS if key not in annotation]
    name = f'annotation {annotation.get("id", "without id")}'
    if absent:
        return f'has no {" and no ".join(absent)} in {name}'
    for kind, known in (('image', sizes), ('category', categories)):
        if annotation[f'{kind}_id'] not in list(known):  # a list of ids compares values that have no hash too
            return f'has no {kind} {annotation[f"{kind}_id"]!r:.40}, which {name} names'
    return (
        f'has in {name} the bbox {annotation["bbox"]!r:.80} and the area {annotation["area"]!r:.20}, '
        'where finite numbers [x, y, width, height] and a number are needed'
    )


def is_drawable(segmentation: list | dict, width: float, height: float) -> bool:
    """Whether pycocotools draws a mask within the memory of its image: it checks nothing by itself."""
    try:
        if isinstance(segmentation, dict):
            counts = segmentation['counts']
            counts = run_lengths(counts) if isinstance(counts, str) else counts
            return list(segmentation['size']) == [height, width] and (
                min(counts) >= 0 and sum(counts) == width * height
            )
        for polygon in segmentation:
            for values, side in ((polygon[::2], width), (polygon[1::2], height)):
                inside = math.isfinite(sum(values)) and -side <= min(values) and max(values) <= 2 * side
                if not inside:
                    return False
    except (KeyError, TypeError, ValueError, IndexError):
        return False
    return True


def run_lengths(text: str) -> list[int]:
    """The counts in COCO's compressed text: five bits a character, and from the third on differences."""
    counts, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:  # no count has more than 64 bits
            raise ValueError(f'run_lengths: no character of run lengths, got {character!r}')
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts
