import json
import logging
import math
from pathlib import Path

import mmdet.datasets
import pytest
from mmengine.registry import DATASETS, init_default_scope

from grootv.datasets.coco import CocoDataset
from grootv.errors import UserError

CLASSES = ('cat', 'dog')
CAT, DOG = dict(id=3, name='cat'), dict(id=5, name='dog')
ABSENT = object()
SQUARE = [[0, 0, 9, 0, 9, 9, 0, 9]]
TRAINING = dict(filter_cfg=dict(filter_empty_gt=True, min_size=32))


def content() -> dict:
    """Two images with a box each, one of them a crowd."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=64, height=48) for i in (7, 8)]
    box = dict(bbox=[1.0, 2.0, 10.0, 10.5], area=105.0, iscrowd=0, segmentation=SQUARE)
    annotations = [
        dict(box, id=1, image_id=7, category_id=3),
        dict(box, id=2, image_id=8, category_id=5, iscrowd=1),
    ]
    return dict(images=images, annotations=annotations, categories=[CAT, DOG])


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / 'instances.json'


def load(path: Path, data: dict | list | str | None = None, kind: type = CocoDataset, **options):
    if data is not None:
        path.write_text(data if isinstance(data, str) else json.dumps(data))
    places = dict(ann_file=path.name, data_root=str(path.parent), data_prefix=dict(img='images'))
    # Serialized data would make MMEngine collect garbage, which takes longer than all the rest.
    defaults = dict(metainfo=dict(classes=CLASSES), pipeline=[], serialize_data=False)
    return kind(**{**places, **defaults, **options})


def refusal(path: Path, data: dict | list | str | None = None, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, data, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    seen = []
    levels = {logging.WARNING: seen.append}
    monkeypatch.setattr('grootv.datasets.coco.print_log', lambda text, _, level: levels[level](text))
    return seen


@pytest.mark.parametrize('options', [TRAINING, dict(test_mode=True, **TRAINING), dict(indices=1)])
def test_a_sound_file_gives_what_mmdet_gives(path, options, warnings):
    ours = load(path, content(), **options)
    theirs = load(path, kind=mmdet.datasets.CocoDataset, **options)
    assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]
    assert (ours.metainfo, ours.cat2label) == (theirs.metainfo, theirs.cat2label)
    assert warnings == []


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_a_config_of_any_scope_finds_it(path, scope):
    path.write_text(json.dumps(content()))
    init_default_scope(scope)
    cfg = dict(type='grootv.CocoDataset', ann_file=str(path), data_prefix=dict(img=''), pipeline=[])
    built = DATASETS.build(dict(cfg, metainfo=dict(classes=CLASSES)))
    assert type(built) is CocoDataset and len(built) == 2


def test_a_file_that_is_not_json_is_reported_with_the_place(path):
    assert refusal(path) == f'annotation file {path} does not exist: check data_root and ann_file'
    sentence = refusal(path, '{"images": [],\n "annotations": [')
    assert f'{path} is cut short or not JSON, line 2, column 18: Expecting value' in sentence
    path.write_bytes(b'\x89PNG\xff\xfe')
    assert f'{path} is not text: invalid start byte at byte 0' in refusal(path)


@pytest.mark.parametrize(
    'data, fault',
    [
        ([1], 'is not a COCO file: it holds a list, not an object'),
        ({'info': {}}, 'is not a COCO file: it has no images and no annotations and no categories'),
        ({**content(), 'images': {}}, 'is not a COCO file: its images are not a list'),
        ({**content(), 'annotations': []}, 'has no annotations, so there is nothing to learn from'),
        ({**content(), 'annotations': [3]}, 'has an annotation that is not an object: 3'),
        ({**content(), 'categories': [{'id': 3}]}, 'has a category without id and name'),
        ({**content(), 'categories': [CAT, CAT]}, 'has two categories with the same id or name'),
    ],
)
def test_json_of_another_format_is_reported(path, data, fault):
    assert f'annotation file {path} {fault}' in refusal(path, data)


@pytest.mark.parametrize(
    'section, change, fault',
    [
        ('images', dict(id=8), 'has two images with id 8'),
        ('images', dict(width=None), 'has an image without valid id, file_name, width, height: images[0]'),
        ('images', dict(width=0), 'gives image 7 the size 0 x 48'),
        ('annotations', dict(image_id=99), 'has no image 99, which annotation 1 names'),
        ('annotations', dict(image_id=[7]), 'has no image [7], which annotation 1 names'),
        ('annotations', dict(category_id=4), 'has no category 4, which annotation 1 names'),
        ('annotations', dict(bbox=[1, 2, 3]), 'has in annotation 1 the bbox [1, 2, 3] and the area 105.0,'),
        ('annotations', dict(bbox=[1, 2, math.nan, 4]), 'has in annotation 1 the bbox [1, 2, nan, 4]'),
        ('annotations', dict(bbox=[1, 2, '3', 4]), "has in annotation 1 the bbox [1, 2, '3', 4]"),
        ('annotations', dict(area='105'), 'has in annotation 1 the bbox [1.0, 2.0, 10.0, 10.5] and the area'),
        ('annotations', dict(id=ABSENT), 'has no id in annotation without id'),
        ('annotations', dict(bbox=ABSENT), 'has no bbox in annotation 1'),
    ],
)
def test_an_invalid_entry_is_reported(path, section, change, fault):
    data = content()
    entry = data[section][0] | change
    data[section][0] = {key: value for key, value in entry.items() if value is not ABSENT}
    assert f'annotation file {path} {fault}' in refusal(path, data)


def test_images_to_test_need_no_annotations(path):
    data = content()
    del data['annotations']
    assert len(load(path, data, test_mode=True)) == 2
    data['images'] = []
    assert 'leaves none of its 0 images' in refusal(path, data, test_mode=True)


def test_missing_masks_are_reported_where_they_are_read(path):
    init_default_scope('mmdet')
    steps = [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    assert len(load(path, content(), pipeline=steps)) == 2
    data = content()
    del data['annotations'][1]['segmentation']
    assert 'has no segmentation in annotation 2, and with_mask=True' in refusal(path, data, pipeline=steps)
    assert len(load(path, data)) == 2
    # mmdet never reads an annotation of another class.
    assert len(load(path, data, pipeline=steps, metainfo=dict(classes=('cat',)))) == 2


def test_classes_of_another_data_set_are_reported_with_those_of_the_file(path):
    data = dict(content(), categories=[dict(CAT, name='0'), dict(DOG, name='1')])
    sentence = refusal(path, data, metainfo=None)  # the 80 of COCO
    assert f'annotation file {path} has none of the classes of the config' in sentence
    assert '(person, bicycle, car and 77 more), but 0, 1: set metainfo.classes' in sentence
    # The comma of a tuple of one is easily lost; mmdet would look for parts of the text.
    sentence = refusal(path, content(), metainfo=dict(classes='cat'))
    assert "metainfo.classes must be a tuple of names, got the text 'cat'" in sentence


def test_labels_under_another_name_are_warned_of_once(path, warnings):
    load(path, content(), metainfo=dict(classes=('dog', 'cat')))
    (warning,) = warnings
    assert f'{path} numbers its classes cat, dog in this order, and the config names dog, cat:' in warning


def test_boxes_without_area_are_left_out_and_counted_once(path, warnings):
    data = content()
    empty = [[1, 1, 0, 5], [1, 1, 0.5, 5], [1, 1, 5, 5], [70, 1, 5, 5], [1, 1, -5, 5]]
    for number, bbox in enumerate(empty):
        area = 0 if number == 2 else 25
        data['annotations'].append(dict(data['annotations'][0], id=10 + number, bbox=bbox, area=area))
    data['annotations'].append(dict(data['annotations'][-1], id=20, ignore=1))  # mmdet skips it before
    ours = load(path, data)
    theirs = load(path, kind=mmdet.datasets.CocoDataset)
    assert [ours[i]['instances'] for i in range(2)] == [theirs[i]['instances'] for i in range(2)]
    assert sum(len(ours[i]['instances']) for i in range(2)) == 2
    (warning,) = warnings
    assert 'has 5 boxes that are left out' in warning
    assert '(annotations 10, 11, 12 and 2 more)' in warning


def test_a_file_that_leaves_nothing_to_learn_from_is_reported(path):
    data = content()
    data['annotations'] = [dict(data['annotations'][0], bbox=[1, 1, 0, 0], area=0)]
    assert f'annotation file {path} has no box to learn from' in refusal(path, data, **TRAINING)
    assert len(load(path, data, test_mode=True)) == 2

    data = content()
    for image in data['images']:
        image['width'] = 20
    assert 'leaves none of its 2 images after' in refusal(path, data, **TRAINING)
