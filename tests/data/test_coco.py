import json
import logging
import math
from pathlib import Path
from typing import Any

import mmdet.datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import DATASETS, init_default_scope
from pycocotools import mask as mask_util

from grootv.datasets.coco import CocoDataset, CocoMetric, run_lengths
from grootv.errors import UserError

CLASSES = ('cat', 'dog')
CAT, DOG = dict(id=3, name='cat'), dict(id=5, name='dog')
ABSENT = object()
TRAINING = dict(filter_cfg=dict(filter_empty_gt=True, min_size=32))
TEST = dict(test_mode=True, **TRAINING)
MASKS = dict(pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)])


def content(**sections: Any) -> dict:
    """Two images with a box each, one of them a crowd; or other sections."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=64, height=48) for i in (7, 8)]
    box = dict(bbox=[1.0, 2.0, 10.0, 10.5], area=105.0, iscrowd=0, segmentation=[[0, 0, 9, 0, 9, 9, 0, 9]])
    annotations = [
        dict(box, id=1, image_id=7, category_id=3),
        dict(box, id=2, image_id=8, category_id=5, iscrowd=1),
    ]
    return dict(images=images, annotations=annotations, categories=[CAT, DOG]) | sections


def changed(section: str, **values: Any) -> dict:
    """The content with other values in the first entry of a section, or without them."""
    data = content()
    entry = data[section][0] | values
    data[section][0] = {key: value for key, value in entry.items() if value is not ABSENT}
    return data


@pytest.fixture
def path(tmp_path) -> Path:
    init_default_scope('mmdet')
    return tmp_path / 'instances.json'


def load(path: Path, data: dict | list | bytes | None = None, kind: type = CocoDataset, **options):
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    places = dict(ann_file=path.name, data_root=str(path.parent), data_prefix=dict(img='images'))
    # Serialized data would make MMEngine collect garbage, which takes longer than all the rest.
    defaults = dict(metainfo=dict(classes=CLASSES), pipeline=[], serialize_data=False)
    return kind(**{**places, **defaults, **options})


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    seen = []
    levels = {logging.WARNING: seen.append}
    monkeypatch.setattr('grootv.datasets.coco.print_log', lambda text, _, level: levels[level](text))
    return seen


@pytest.mark.parametrize('options', [TRAINING, TEST, dict(indices=1)])
def test_a_sound_file_gives_what_mmdet_gives(path, options, warnings):
    ours = load(path, content(), **options, **MASKS)
    theirs = load(path, kind=mmdet.datasets.CocoDataset, **options)
    infos = [[data.get_data_info(i) for i in range(len(data))] for data in (ours, theirs)]
    assert infos[0] == infos[1]
    assert (ours.metainfo, ours.cat2label) == (theirs.metainfo, theirs.cat2label)
    assert warnings == []


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_a_config_of_any_scope_finds_it(path, scope):
    path.write_text(json.dumps(content()))
    init_default_scope(scope)
    cfg = dict(type='grootv.CocoDataset', ann_file=str(path), data_prefix=dict(img=''), pipeline=[])
    built = DATASETS.build(dict(cfg, metainfo=dict(classes=CLASSES)))
    assert type(built) is CocoDataset and len(built) == 2


def test_what_is_not_read_may_be_missing(path):
    data = changed('annotations', segmentation=ABSENT)
    data['annotations'][1]['iscrowd'] = 0
    assert len(load(path, data)) == 2
    # mmdet never reads an annotation of another class.
    assert len(load(path, data, **MASKS, metainfo=dict(classes=('dog',)))) == 2
    assert len(load(path, content(), **MASKS)) == 2
    assert len(load(path, content(annotations=[]), **TEST)) == 2
    del data['annotations']
    assert len(load(path, data, **TEST)) == 2


IMAGE, BOX = 'images', 'annotations'


@pytest.mark.parametrize(
    'data, options, fault',
    [
        (None, {}, 'does not exist: check data_root and ann_file'),
        (b'{"images": [],\n "annotations": [', {}, 'is cut short or not JSON, line 2, column 18: Expecting'),
        (b'\x89PNG\xff\xfe', {}, 'is not text: invalid start byte at byte 0'),
        ([1], {}, 'is not a COCO file: it holds a list, not an object'),
        ({'info': {}}, {}, 'is not a COCO file: it has no images and no annotations and no categories'),
        (content(images={}), {}, 'is not a COCO file: its images are not a list'),
        (content(annotations=[]), {}, 'has no annotations, so there is nothing to learn from'),
        (content(annotations=[3]), {}, 'has an annotation that is not an object: 3'),
        (content(categories=[{'id': 3}]), {}, 'has a category without id and name'),
        (content(categories=[CAT, CAT]), {}, 'has two categories with the same id or name'),
        (changed(IMAGE, id=8), {}, 'has two images with id 8'),
        (
            changed(IMAGE, width=None),
            {},
            'has an image without valid id, file_name, width, height: images[0]',
        ),
        (changed(IMAGE, width=0), {}, 'gives image 7 the size 0 x 48'),
        (changed(IMAGE, width=10**9), {}, 'gives image 7 the size 1000000000 x 48, which no image'),
        (changed(IMAGE, height=math.inf), {}, 'gives image 7 the size 64 x inf'),
        (changed(BOX, area=math.inf), {}, 'has in annotation 1 the bbox [1.0, 2.0, 10.0, 10.5] and the area'),
        (changed(BOX, image_id=99), {}, 'has no image 99, which annotation 1 names'),
        (changed(BOX, image_id=[7]), {}, 'has no image [7], which annotation 1 names'),
        (changed(BOX, category_id=4), {}, 'has no category 4, which annotation 1 names'),
        (changed(BOX, bbox=[1, 2, 3]), {}, 'has in annotation 1 the bbox [1, 2, 3] and the area 105.0,'),
        (changed(BOX, bbox=[1, 2, math.nan, 4]), {}, 'has in annotation 1 the bbox [1, 2, nan, 4]'),
        (changed(BOX, area='105'), {}, 'has in annotation 1 the bbox [1.0, 2.0, 10.0, 10.5] and the area'),
        (changed(BOX, id=ABSENT), {}, 'has no id in annotation without id'),
        (changed(BOX, bbox=ABSENT), {}, 'has no bbox in annotation 1'),
        (changed(BOX, segmentation=ABSENT), MASKS, 'has no segmentation in annotation 1, and masks are used'),
        (changed(BOX, segmentation=[[]]), MASKS, 'has no segmentation in annotation 1, and masks are used'),
        (changed(BOX, iscrowd='yes'), {}, "has in annotation 1 the iscrowd 'yes', which must be 0 or 1"),
        (changed(BOX, iscrowd=[0]), {}, 'has in annotation 1 the iscrowd [0], which must be 0 or 1'),
        (changed(BOX, ignore=2), {}, 'has in annotation 1 the ignore 2, which must be 0 or 1'),
        (content(images=[], annotations=[]), TEST, 'leaves none of its 0 images'),
        (content(images=[dict(image, width=20) for image in content()[IMAGE]]), TRAINING, 'leaves none of'),
        (content(annotations=[dict(content()[BOX][0], area=0)]), TRAINING, 'has no box to learn from'),
        (changed(BOX, iscrowd=1), TRAINING, 'has no box to learn from'),
    ],
)
def test_an_unusable_file_is_reported_in_a_sentence(path, data, options, fault):
    with pytest.raises(UserError) as error:
        load(path, data, **options)
    assert str(error.value).startswith(f'annotation file {path} {fault}')
    assert len(str(error.value).splitlines()) == 1


PIXELS = np.zeros((48, 64), np.uint8, order='F')
PIXELS[5:9, 10:30] = PIXELS[40:, 50:] = 1
COMPRESSED = mask_util.encode(PIXELS)['counts'].decode()


@pytest.mark.parametrize(
    'segmentation, fits',
    [
        ([[-60.5, 0, 9, 0, 9, 90.0, 0, 9]], True),
        ([[math.nan, 0, 9, 0, 9, 9]], False),
        ([[9, 0, 9, math.nan, 9, 9]], False),
        ([[0, 0, 9, 0, 9, 9], [0, 0, math.inf, 0, 9, 9]], False),
        ([[0, 0, 1e9, 0, 9, 9]], False),
        ([[0, 0, 9, -1e9, 9, 9]], False),
        ([[0, 0, '9', 0, 9, 9]], False),
        ([0, 0, 9, 0, 9, 9, 0, 9], True),  # forms that are in use
        ([[0, 0], [9, 0], [9, 9]], True),
        ([[[0, 0], [9, 0], [9, 9]], [0, 0, 9, 0, 9, 9], []], True),
        ([[0, 0], [9, 0]], False),
        ([[0, 0, 9, 9]], False),  # pycocotools takes four numbers for a box
        ([[0, 0, 9, 0, 9, 9, 0]], False),
        ([[[0, 0], [9, 0], [9]]], False),
        ('0 0 9 0 9 9', False),
        ([[5, 5, 5, 5, 5, 5]], False),  # no pixel
        (dict(size=[48, 64], counts=[3072]), False),
        (dict(size=[48, 64], counts=[5, 4, 3063]), True),
        (dict(size=[48, 64], counts=[5, 4, -9, 3072]), False),
        (dict(size=[48, 64], counts=[5, 4, 3063, 2**31]), False),
        (dict(size=[48, 64], counts=[5.0, math.nan]), False),
        (dict(size=[10**6, 10**6], counts=[10**12]), False),
        (dict(counts=[5, 4, 3063]), False),
        (dict(size=[48, 64], counts=COMPRESSED), True),
        (dict(size=[48, 64], counts=COMPRESSED + '1'), False),
        (dict(size=[48, 64], counts='~'), False),
        (dict(size=[48, 64], counts='o' * 10**6), False),  # one number of five million bits
    ],
)
def test_masks_that_would_take_all_memory_are_refused(path, segmentation, fits):
    data = changed(BOX, segmentation=segmentation, category_id=4)  # pycocotools may draw it all the same
    data['categories'].append(dict(id=4, name='of no class of the config'))
    data['annotations'][1]['iscrowd'] = 0
    assert len(load(path, data)) == 2  # boxes alone are read
    for read in (lambda: load(path, data, **MASKS), lambda: CocoMetric(str(path), metric=['bbox', 'segm'])):
        if fits:
            read()
        else:
            fault = r'has in annotation 1 a segmentation .* its image of 64 x 48'
            with pytest.raises(UserError, match=fault):
                read()


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_run_lengths_equal_those_of_pycocotools(pixels):
    mask = np.asfortranarray(np.array(pixels, np.uint8).reshape(-1, 1))
    changes = np.flatnonzero(np.diff([0, *pixels])).tolist()
    counts = np.diff([0, *changes, len(pixels)]).tolist()
    assert run_lengths(mask_util.encode(mask)['counts'].decode()) == counts


def test_classes_of_another_data_set_are_reported_with_those_of_the_file(path):
    data = content(categories=[dict(CAT, name='0'), dict(DOG, name='1')])
    fault = r'none of the classes of the config \(person, bicycle, car and 77 more\), but 0, 1: set metainfo'
    with pytest.raises(UserError, match=f'annotation file {path} has {fault}'):
        load(path, data, metainfo=None)  # the 80 of COCO
    # The comma of a tuple of one is easily lost; mmdet would look for parts of the text.
    with pytest.raises(UserError, match=r"metainfo.classes must be a tuple of names, got the text 'cat'"):
        load(path, content(), metainfo=dict(classes='cat'))


@pytest.mark.parametrize(
    'names, place, found, named',
    [
        (('dog', 'cat'), 0, 'cat, dog', 'dog, cat'),
        (('cat', 'bird', 'dog'), 1, 'dog', 'bird, dog'),
        (('cat', 'dog', 'bird'), 2, 'none', 'bird'),
        (('cat', 'cat', 'dog'), 1, 'dog', 'cat, dog'),
    ],
)
def test_classes_in_another_order_than_in_the_file_are_refused(path, names, place, found, named):
    for options in (TRAINING, TEST):  # mmdet numbers in the file's order, and names in the config's
        with pytest.raises(UserError) as error:
            load(path, content(), **options, metainfo=dict(classes=names))
        order = f'from class {place} on: the file has {found}, the config {named}: list'
        assert f'annotation file {path} and metainfo.classes differ {order}' in str(error.value)


def perfect_scores(path: Path, data: dict) -> dict[str, float]:
    """The metrics of predictions that equal the annotations of the content."""
    init_default_scope('mmdet')
    path.write_text(json.dumps(data))
    metric = CocoMetric(str(path), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=CLASSES)
    mask = mask_util.merge(mask_util.frPyObjects(content()[BOX][0]['segmentation'], 48, 64))
    box, score = np.array([[1, 2, 11, 12.5]]), np.array([0.9])
    for image, label in ((7, 0), (8, 1)):
        found = dict(bboxes=box, scores=score, labels=np.array([label]), masks=[mask], mask_scores=score)
        truth = dict(img_id=image, width=64, height=48)
        metric.results.append((truth, dict(img_id=image, **found)))
    return metric.evaluate(2)


def test_a_part_of_the_file_is_evaluated_alone(path):
    data = content()
    data[IMAGE].append(dict(data[IMAGE][0], id=9))
    data[BOX].append(dict(data[BOX][0], id=3, image_id=9))
    assert perfect_scores(path, data)['coco/bbox_mAP'] == 1


@pytest.mark.parametrize('crowd', [ABSENT, None, 0, '0', False])
@pytest.mark.parametrize('ids', [(0, 1), (1, 1), ('a', 'b')])
def test_perfect_predictions_score_one_whatever_form_the_annotations_have(path, crowd, ids):
    data = content()
    for annotation, number, segmentation in zip(
        data[BOX], ids, ([0, 0, 9, 0, 9, 9, 0, 9], [[0, 0], [9, 0], [9, 9], [0, 9]]), strict=True
    ):
        annotation.update(id=number, iscrowd=crowd, segmentation=segmentation)
        if crowd is ABSENT:
            del annotation['iscrowd']
    assert all(box['ignore_flag'] == 0 for item in load(path, data) for box in item['instances'])
    scores = perfect_scores(path, data)
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == 1


def test_boxes_crowds_and_images_without_a_box_are_counted(path):
    for number in (7, 8):
        (path.parent / 'images').mkdir(exist_ok=True)
        (path.parent / f'images/{number}.jpg').write_text('')
    summary = load(path, content(), **TEST).summary()
    assert summary.counts == dict(cat=1, dog=0)
    assert summary.facts == {'boxes': 1, 'boxes of crowds': 1, 'images without a box': 1}
    (path.parent / 'images/8.jpg').unlink()
    with pytest.raises(UserError, match=r'names an image that does not exist \(.*8\.jpg\)'):
        load(path, **TEST).summary()


def test_boxes_without_area_are_left_out_and_counted_once(path, warnings):
    data = content()
    empty = [[1, 1, 0, 5], [1, 1, 0.5, 5], [1, 1, 5, 5], [70, 1, 5, 5], [1, 1, -5, 5]]
    for number, bbox in enumerate(empty):
        area = 0 if number == 2 else 25
        data['annotations'].append(dict(data['annotations'][0], id=10 + number, bbox=bbox, area=area))
    data['annotations'].append(dict(data['annotations'][-1], id=20, ignore=1))  # mmdet skips it before
    ours = load(path, data, **MASKS)
    theirs = load(path, kind=mmdet.datasets.CocoDataset)
    instances = [ours.get_data_info(i)['instances'] for i in range(2)]
    assert instances == [theirs[i]['instances'] for i in range(2)] and sum(map(len, instances)) == 2
    (warning,) = warnings
    assert 'has 5 boxes that are left out' in warning
    assert '(annotations 10, 11, 12 and 2 more)' in warning
