"""COCO annotations, checked while they are read. Importing this module needs mmdet."""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet.datasets
import mmdet.evaluation
from mmdet.datasets.api_wrappers import COCO
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from grootv.datasets.summary import Summary, by_suffix, content_key, difference, files_below
from grootv.errors import UserError, first
from grootv.registry import DATASETS, METRICS

_SECTIONS = ('images', 'annotations', 'categories')
_IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
_BOX_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
_MOST_PIXELS = 178_956_970  # Pillow reads no larger image
_FLAGS = {None: 0, 0: 0, 1: 1, '0': 0, '1': 1}  # values of iscrowd and ignore


@DATASETS.register_module()
class CocoDataset(mmdet.datasets.CocoDataset):
    """mmdet's data set, which reports in a sentence what is wrong with its annotation file.

    The file is parsed once, as mmdet does, and looked through before the index is built:
    :class:`AnnotationFile`. Boxes that mmdet leaves out (outside their image, or smaller than a pixel) are
    counted in one warning.

    Args:
        *args: As for :class:`mmdet.datasets.CocoDataset`.
        **kwargs: Likewise.

    Raises:
        UserError: If the file is missing, does not parse or is not a COCO file; if images, categories or
            annotations contradict each other; if the config names its classes in another order; if nothing
            in it can be trained on.
    """

    def COCOAPI(self, path: str) -> COCO:
        """The index of the file; mmdet asks for it by this name."""
        masks = any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms)
        file = AnnotationFile(
            str(self.ann_file), self.metainfo['classes'], masks, training=not self.test_mode
        )
        index = file.index(path)
        self.content_key = content_key(index) if self.test_mode else None
        return index

    def load_data_list(self) -> list[dict]:
        items = super().load_data_list()
        self._paths = {os.path.normpath(item['img_path']) for item in items}
        return items

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        self._filtered = sorted(self._paths - {os.path.normpath(item['img_path']) for item in kept})
        if not kept:
            raise fault(
                self.ann_file, f'leaves none of its {len(self.data_list)} images after {self.filter_cfg}'
            )
        boxes = (box for image in kept for box in image['instances'])
        if not self.test_mode and not any(box['ignore_flag'] == 0 for box in boxes):
            raise fault(self.ann_file, 'has no box to learn from')
        return kept

    def summary(self) -> Summary:
        """Boxes by class that count, images without one, and files of the folder that the file does not name.

        Raises:
            UserError: If the folder lacks images that the file names.
        """
        counts = dict.fromkeys(self.metainfo['classes'], 0)
        crowds = bare = 0
        for index in range(len(self)):
            found = self.get_data_info(index)['instances']
            boxes = [box for box in found if not box['ignore_flag']]
            for box in boxes:
                counts[self.metainfo['classes'][box['bbox_label']]] += 1
            crowds += len(found) - len(boxes)
            bare += not boxes
        present = files_below(self.data_prefix['img'])
        absent = [path for path in sorted(self._paths - present) if not os.path.exists(path)]
        absent = [path for path in absent if '://' not in path]
        if absent:
            number = f'{len(absent)} images that do' if len(absent) > 1 else 'an image that does'
            raise fault(self.ann_file, f'names {number} not exist ({first(absent)})')
        left_out = by_suffix(present - self._paths)
        if self._filtered:
            left_out['by filter_cfg'] = self._filtered
        facts = {'boxes': sum(counts.values()), 'boxes of crowds': crowds, 'images without a box': bare}
        return Summary('boxes', counts, left_out, facts={name: n for name, n in facts.items() if n})


@METRICS.register_module()
class CocoMetric(mmdet.evaluation.CocoMetric):
    """mmdet's metric, whose annotation file is checked, before a training begins, as the data set's is.

    It evaluates the images of the data, where mmdet counts the others of the file as missed.

    Args:
        ann_file: COCO file to compare with; None takes the boxes that the data set loads.
        metric: As for :class:`mmdet.evaluation.CocoMetric`.
        backend_args: Likewise.
        **kwargs: Likewise.

    Raises:
        UserError: As for :class:`CocoDataset`.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | list[str] = 'bbox',
        backend_args: dict | None = None,
        **kwargs,
    ):
        options: dict[str, Any] = dict(kwargs, backend_args=backend_args)
        super().__init__(metric=metric, **options)
        if ann_file is not None:
            file = AnnotationFile(ann_file, None, masks='segm' in self.metrics)
            with get_local_path(ann_file, backend_args=backend_args) as path:
                self._coco_api = file.index(str(path))

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.img_ids = sorted(truth['img_id'] for truth, _ in results)  # the data may be a part of the file
        return super().compute_metrics(results)


def fault(name: str | Path | None, text: str) -> UserError:
    return UserError(f'annotation file {name} {text}: fix the file, or give another one as ann_file')


class AnnotationFile:
    """A COCO file whose content is checked, and whose forms that are in use are brought to one.

    A polygon may be one flat list or a list of [x, y]; a missing ``iscrowd`` is 0. Annotations are numbered
    from 1 unless their ids are different whole numbers without 0, which pycocotools takes for "no match".
    Segmentations that nobody asks for are dropped unread.

    Args:
        name: File, as errors name it.
        classes: Names of the classes, which the file must number in this order; None takes the file's.
        masks: Whether segmentations are used.
        training: Whether there must be boxes to learn from.
    """

    def __init__(self, name: str, classes: Sequence[str] | None, masks: bool, training: bool = False):
        self.name = name
        self.classes = classes
        self.masks = masks
        self.training = training

    def index(self, path: str) -> COCO:
        """Read and check the file at ``path`` and build pycocotools' index of it."""
        content = self._read(path)
        self._check_sections(content)
        sizes = self._check_images(content['images'])
        wanted, others = self._check_categories(content['categories'])
        annotations = content.setdefault('annotations', [])
        self._check_annotations(annotations, sizes, wanted, others)
        ids = {annotation['id'] for annotation in annotations if type(annotation['id']) is int}
        if len(ids - {0}) < len(annotations):
            for number, annotation in enumerate(annotations, 1):
                annotation['id'] = number
        index = COCO()
        index.dataset = content
        index.createIndex()
        index.img_ann_map, index.cat_img_map = index.imgToAnns, index.catToImgs
        return index

    def _fault(self, text: str) -> UserError:
        return fault(self.name, text)

    def _read(self, path: str) -> Any:
        try:
            with open(path, encoding='utf-8-sig') as file:
                return json.load(file)
        except FileNotFoundError as error:
            raise UserError(
                f'annotation file {self.name} does not exist: check data_root and ann_file'
            ) from error
        except json.JSONDecodeError as error:
            place = f'line {error.lineno}, column {error.colno}'
            raise self._fault(f'is cut short or not JSON, {place}: {error.msg}') from error
        except UnicodeDecodeError as error:
            raise self._fault(f'is not text: {error.reason} at byte {error.start}') from error

    def _check_sections(self, content: Any) -> None:
        if not isinstance(content, dict):
            raise self._fault(f'is not a COCO file: it holds a {type(content).__name__}, not an object')
        optional = set() if self.training else {'annotations'}
        absent = [name for name in _SECTIONS if name not in content and name not in optional]
        if absent:
            raise self._fault(f'is not a COCO file: it has no {" and no ".join(absent)}')
        for name in _SECTIONS:
            if not isinstance(content.get(name, []), list):
                raise self._fault(f'is not a COCO file: its {name} are not a list')
        if self.training and not content['annotations']:
            raise self._fault('has no annotations, so there is nothing to learn from')

    def _check_images(self, images: list) -> dict[Any, tuple[float, float]]:
        """Width and height by image id."""
        sizes = {}
        for position, image in enumerate(images):
            try:
                identity, name, width, height = (image[key] for key in _IMAGE_KEYS)
                if not is_id(identity) or not isinstance(name, str) or not name or '\0' in name:
                    raise TypeError
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

    def _check_categories(self, categories: list) -> tuple[dict, set]:
        """Names by id of the categories that the config names, and ids of the others."""
        try:
            names = {category['id']: category['name'] for category in categories}
            if not all(is_id(key) and isinstance(name, str) for key, name in names.items()):
                raise TypeError
        except (KeyError, TypeError):
            raise self._fault('has a category without id and name') from None
        if len(names) < len(categories) or len(set(names.values())) < len(names):
            raise self._fault('has two categories with the same id or name')
        classes = names.values() if self.classes is None else self.classes
        if isinstance(classes, str):
            raise UserError(f'metainfo.classes must be a tuple of names, got the text {classes!r}')
        wanted = {identity: name for identity, name in names.items() if name in classes}
        if not wanted:
            raise UserError(
                f'annotation file {self.name} has none of the classes of the config ({first(classes)}), '
                f'but {first(names.values())}: set metainfo.classes to names of the file'
            )
        found, named = list(wanted.values()), list(classes)
        if found != named:
            place, theirs, ours = difference(found, named)
            raise UserError(
                f'annotation file {self.name} and metainfo.classes differ from class {place} on: the file '
                f'has {theirs}, the config {ours}: list categories of the file in its order'
            )
        return wanted, names.keys() - wanted

    def _check_annotations(self, annotations: list, sizes: dict, wanted: dict, others: set) -> None:
        skipped = []
        for annotation in annotations:
            try:
                x, y, width, height = annotation['bbox']
                image_width, image_height = sizes[annotation['image_id']]
                seen = min(x + width, image_width) > max(x, 0) and min(y + height, image_height) > max(y, 0)
                area = annotation['area'] > 0
                sound = math.isfinite(x + y + width + height + annotation['area'])
                category = annotation['category_id']
                if not sound or (category not in wanted and category not in others):
                    raise ValueError
                for name in ('iscrowd', 'ignore'):
                    annotation[name] = _FLAGS[annotation.get(name)]
                hash(annotation['id'])
            except (KeyError, TypeError, ValueError):
                raise self._fault(describe(annotation, sizes, [*wanted, *others])) from None
            mask = annotation.pop('segmentation', None) or []
            if self.masks and mask:
                mask = annotation['segmentation'] = as_polygons(mask)
                if not is_drawable(mask, image_width, image_height):
                    raise self._fault(
                        f'has in annotation {annotation["id"]} a segmentation that is not of its image of '
                        f'{image_width} x {image_height}: polygons are lists of three or more finite points '
                        'x, y, ... at most one side of the image outside it, run lengths have the size '
                        '[height, width], add up to its pixels and fill some'
                    )
            if category not in wanted or annotation['ignore']:
                continue
            if not seen or not area or width < 1 or height < 1:
                skipped.append(annotation['id'])
                continue
            if self.masks and not mask:
                raise self._fault(f'has no segmentation in annotation {annotation["id"]}, and masks are used')
        if skipped:
            self._warn(
                f'has {len(skipped)} boxes that are left out, outside their image, smaller than a pixel or '
                f'of area 0 (annotations {first(skipped)})'
            )

    def _warn(self, text: str) -> None:
        print_log(f'annotation file {self.name} {text}', 'current', logging.WARNING)


def is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def describe(annotation: Any, sizes: dict, categories: list) -> str:
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
    for key in ('iscrowd', 'ignore'):
        if annotation.get(key) not in list(_FLAGS):
            return f'has in {name} the {key} {annotation[key]!r:.40}, which must be 0 or 1'
    return (
        f'has in {name} the bbox {annotation["bbox"]!r:.80} and the area {annotation["area"]!r:.20}, '
        'where finite numbers [x, y, width, height] and a number are needed'
    )


def as_polygons(segmentation: Any) -> Any:
    """COCO's list of flat polygons from a flat polygon, or from polygons whose points are [x, y].

    Anything else is returned as it is.
    """
    if not isinstance(segmentation, list):
        return segmentation
    if all(isinstance(value, int | float) for value in segmentation):
        return [segmentation]
    if len(segmentation) > 2 and all(map(_is_point, segmentation)):
        segmentation = [segmentation]
    return [
        [value for point in polygon for value in point]
        if isinstance(polygon, list) and all(map(_is_point, polygon))
        else polygon
        for polygon in segmentation
        if polygon != []
    ]


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def is_drawable(segmentation: list | dict, width: float, height: float) -> bool:
    """Whether pycocotools draws a mask within the memory of its image: it checks nothing by itself."""
    try:
        if isinstance(segmentation, dict):
            counts = segmentation['counts']
            counts = run_lengths(counts) if isinstance(counts, str) else counts
            return list(segmentation['size']) == [height, width] and (
                min(counts) >= 0 and sum(counts) == width * height and sum(counts[1::2]) > 0
            )
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or polygon[:-2] == polygon[2:]:  # all points are one
                return False
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
