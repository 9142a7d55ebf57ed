"""Annotations of other tools as COCO files: YOLO, Pascal VOC, LabelMe."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw
from pycocotools import mask as mask_util

from grootv.datasets import CocoDataset
from tests.tools.tiny_run import run_tool

YOLO, VOC, LABELME = (f'dataset_converters/{name}.py' for name in ('yolo', 'pascal_voc', 'labelme'))


def write(folder: Path, files: dict[str, str | bytes | dict]) -> None:
    """Files of annotations in folder/src and for each an image of 40 x 20 pixels in folder/images."""
    for name, content in files.items():
        path, image = folder / 'src' / name, (folder / 'images' / name).with_suffix('.png')
        for each in (path, image):
            each.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        Image.new('RGB', (40, 20)).save(image)


def voc(*objects: str, size: str = '<width>40</width><height>20</height>') -> str:
    return f'<annotation><size>{size}</size>{"".join(objects)}</annotation>'


def voc_box(name: str, x0: float, y0: float, x1: float, y1: float, more: str = '') -> str:
    corners = f'<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>'
    return f'<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>'


def labelme(*shapes: dict, **more) -> dict:
    return dict(shapes=list(shapes), imageWidth=40, imageHeight=20) | more


def shape(label: str, points: list, kind: str = 'polygon', **more) -> dict:
    return dict(label=label, points=points, shape_type=kind) | more


TRIANGLE = [[2, 3], [10, 3], [10, 9]]
FILES = {
    YOLO: {
        'a/one.txt': '1 0.5 0.5 0.25 0.5\n0 0.05 0.15 0.25 0.15 0.25 0.45\n\n',
        'two.txt': '0 0.01 0.5 0.1 0.5\n1 0.5 0.5 0.001 0.5\n',
        'none.txt': '',
    },
    VOC: {
        'a/one.xml': voc(
            voc_box('dog', 16, 6, 25, 15, '<difficult>Unspecified</difficult>'), voc_box('cat', 3, 4, 10, 9)
        ),
        'two.xml': voc(
            voc_box('cat', 0, 6, 2, 15, '<difficult>1</difficult>'),
            voc_box('dog', 30, 5, 20, 9),
            size='<width>0</width><height>0</height>',
        ),
    },
    LABELME: {
        'a/one.json': labelme(shape('dog', [[25, 15], [15, 5]], 'rectangle'), shape('cat', TRIANGLE)),
        'two.json': labelme(
            shape('cat', [[-1, 5], [3, 5], [3, 15]], group_id=1),
            shape('cat', [[5, 5], [9, 5], [9, 15]], group_id=1),
            shape('cat', [[6, 6], [6, 6], [6, 6]], group_id=1),  # nothing
            shape('cat', [[2, 2], [5, 5], [9, 9]]),
            shape('dog', [[1, 1]], 'point'),
        ),
    },
}


@pytest.mark.parametrize('tool', FILES)
def test_annotations_become_a_coco_file_that_training_reads(tool, tmp_path, capsys):
    write(tmp_path, FILES[tool])
    Image.new('L', (9, 9)).save(tmp_path / 'images/bare.png')
    (tmp_path / f'src/alone{Path(next(iter(FILES[tool]))).suffix}').write_text('nothing reads this')
    (tmp_path / 'classes.txt').write_text('cat\ndog\nowl\n')
    out, folders = tmp_path / 'new/train.json', (tmp_path / 'src', tmp_path / 'images')
    assert run_tool(tool, *folders, out, '--classes', tmp_path / 'classes.txt') == 0
    printed = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert [each['name'] for each in content['categories']] == ['cat', 'dog', 'owl']
    names = {each['id']: each['file_name'] for each in content['images']}
    assert ('bare.png' in names.values()) == (tool == YOLO)
    boxes = {
        (names[a['image_id']], a['category_id'], *a['bbox'], a['iscrowd']) for a in content['annotations']
    }
    masks = [a['segmentation'] for a in content['annotations'] if 'segmentation' in a]
    expected = {('a/one.png', 2, 15, 5, 10, 10, 0)}
    if tool == YOLO:
        expected |= {('a/one.png', 1, 2, 3, 8, 6, 0), ('two.png', 1, 0, 5, 2.4, 10, 0)}
        assert masks == [[[2, 3, 10, 3, 10, 9]]]
        assert 'left out, outside the image or smaller than a pixel: 1 (two)' in printed
        assert 'images without annotations, which are background: 1 (bare)' in printed
    elif tool == VOC:
        expected |= {('a/one.png', 1, 2, 3, 8, 6, 0), ('two.png', 1, 0, 5, 2, 10, 1)}
        assert not masks and 'difficult, which count for nothing  1' in printed
        assert 'left out, with corners in the wrong order: 1 (two)' in printed
    else:
        expected |= {('a/one.png', 1, 2, 3, 8, 6, 0), ('two.png', 1, 0, 5, 9, 10, 0)}
        half = [0, 7.5, 0, 5, 3, 5, 3, 15]  # cut at the left border
        assert masks == [[[2, 3, 10, 3, 10, 9]], [half, [5, 5, 9, 5, 9, 15]]]
        assert [a['area'] for a in content['annotations']] == [100, 24, 38.75]
        assert 'left out, shapes of the kind point: 1 (two)' in printed
        assert 'left out, outside the image or smaller than a pixel: 1 (two)' in printed
    assert boxes == expected
    assert 'left out, annotations without an image: 1 (alone)' in printed
    assert 'no annotation of owl' in printed and f'{out}: {len(names)} images, 3 annotations' in printed
    init_default_scope('mmdet')
    settings = dict(ann_file=str(out), data_prefix=dict(img=str(folders[1])), pipeline=[])
    data = CocoDataset(metainfo=dict(classes=('cat', 'dog', 'owl')), **settings)
    assert data.summary().counts['dog'] == 1 and len(data) == len(names)


def painted(width: int, height: int) -> str:
    """A mask of LabelMe without its last row."""
    buffer = io.BytesIO()
    mask = Image.new('1', (width, height), 1)
    mask.paste(0, (0, height - 1, width, height))
    mask.save(buffer, 'PNG')
    return base64.b64encode(buffer.getvalue()).decode()


def test_polygons_are_cut_at_the_borders_of_the_image(tmp_path):
    outside = shape('a', [[50, 5], [60, 5], [60, 15]])
    write(tmp_path, {'a.json': labelme(shape('a', [[-20, -20], [40, 10], [60, 50]]), outside)})
    assert run_tool(LABELME, tmp_path / 'src', tmp_path / 'images', tmp_path / 'a.json') == 0
    (annotation,) = json.loads((tmp_path / 'a.json').read_text())['annotations']
    found = mask_util.decode(mask_util.merge(mask_util.frPyObjects(annotation['segmentation'], 20, 40)))
    drawn = Image.new('1', (80, 80))
    ImageDraw.Draw(drawn).polygon([(0, 0), (60, 30), (80, 70)], 1)
    expected = np.asarray(drawn)[20:40, 20:60]
    assert (found != expected).mean() < 0.03, 'but for rounding at the edges'
    rows, columns = np.nonzero(found)
    x, y, width, height = annotation['bbox']
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert np.allclose((x, y, x + width, y + height), box, atol=1)


def test_a_painted_mask_becomes_run_lengths(tmp_path):
    shapes = [shape('a', [[3, 4], [7, 9]], 'mask', mask=painted(5, 6))]
    shapes.append(shape('a', [[3, 4], [7, 4]], 'mask', mask=painted(5, 1)))  # nothing
    write(tmp_path, {'a.json': labelme(*shapes)})
    assert run_tool(LABELME, tmp_path / 'src', tmp_path / 'images', tmp_path / 'a.json') == 0
    (annotation,) = json.loads((tmp_path / 'a.json').read_text())['annotations']
    assert annotation['bbox'] == [3, 4, 5, 6] and annotation['area'] == 25
    expected = np.zeros((20, 40))
    expected[4:9, 3:8] = 1
    assert (mask_util.decode(annotation['segmentation']) == expected).all()
    init_default_scope('mmdet')
    steps = [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    CocoDataset(
        metainfo=dict(classes=('a',)),
        data_prefix=dict(img=''),
        ann_file=str(tmp_path / 'a.json'),
        pipeline=steps,
    )


def test_classes_are_those_of_the_file_or_of_all_annotations(tmp_path, capsys):
    write(tmp_path, FILES[VOC])
    folders = (tmp_path / 'src', tmp_path / 'images')
    assert run_tool(VOC, *folders, tmp_path / 'train.json') == 0
    (tmp_path / 'list.txt').write_text('two\n')
    args = ('--list', tmp_path / 'list.txt', '--classes', tmp_path / 'train.json')
    assert run_tool(VOC, *folders, tmp_path / 'val.json', *args) == 0
    content = json.loads((tmp_path / 'val.json').read_text())
    assert [each['name'] for each in content['categories']] == ['cat', 'dog']
    assert [each['file_name'] for each in content['images']] == ['two.png']
    (tmp_path / 'data.yaml').write_text('names: {0: dog}\n')
    capsys.readouterr()
    assert run_tool(VOC, *folders, tmp_path / 'dogs.json', '--classes', tmp_path / 'data.yaml') == 0
    assert 'left out, of the class cat: 2 (a/one, two)' in capsys.readouterr().out


ENTITIES = '<!DOCTYPE a [<!ENTITY b "ha">]><annotation>&b;</annotation>'
FAULTS = [
    (
        YOLO,
        '0 0.5 0.5 0.25',
        'a.txt has in line 1 4 numbers, where a class and 4 of a box, or 3 or more points',
    ),
    (YOLO, '0 0.5 x 0.25 1', "has in line 1 no numbers ('0 0.5 x 0.25 1')"),
    (YOLO, '\n2 0.5 0.5 0.25 1', 'has in line 2 the class 2, and --classes names 0 to 1'),
    (YOLO, '0 20 10 5 5', 'coordinates that are no shares of the image from 0 to 1'),
    (YOLO, '0 nan 0.5 0.5 0.5', 'coordinates that are no shares of the image'),
    (YOLO, b'\xff\xfe', 'is no text in UTF-8 (byte 0)'),
    (VOC, '<annotation>', 'a.xml is cut short or no XML ('),
    (VOC, '', 'is cut short or no XML ('),
    (VOC, ENTITIES, 'has a document type, which VOC does not use'),
    (VOC, ENTITIES.encode('utf-16'), 'has a document type, which VOC does not use'),
    (VOC, voc(voc_box('', 1, 1, 2, 2)), 'has no name in object 1'),
    (VOC, voc('<object><name>a</name></object>'), 'has in object 1 no numbers xmin, ymin, xmax, ymax'),
    (VOC, voc(voc_box('a', 1, 'inf', 2, 2)), 'has in object 1 no numbers'),
    (VOC, voc(voc_box('a', 1, 1, 9, 9, '<difficult>x</difficult>')), 'has in object 1 difficult=x, which'),
    (VOC, voc(size='<width>20</width><height>40</height>'), 'gives it 20 x 40: fix the file'),
    (LABELME, '{"shapes": [', 'a.json is cut short or no JSON ('),
    (LABELME, '[' * 100_000, 'is cut short or no JSON ('),
    (LABELME, '[]', 'is no file of LabelMe: it has no list of shapes'),
    (LABELME, labelme(dict(points=[])), 'has no label in shape 1'),
    (LABELME, labelme(shape('a', [[1, 2], 3])), 'has in shape 1 no points [x, y]'),
    (LABELME, labelme(shape('a', [[1, 2], [3, 4]])), 'has in shape 1 2 points of a polygon'),
    (LABELME, labelme(shape('a', [[1, 2], [3, float('nan')], [1, 1]])), 'or one that is no pixel'),
    (
        LABELME,
        labelme(shape('a', [[1, 2], [1e300, 2]], 'circle')),
        '2 points of a circle, or one that is no pixel',
    ),
    (
        LABELME,
        labelme(shape('a', [[1, 2], [3, 4]], 'mask')),
        'has in shape 1 a mask that is no picture of its',
    ),
    (LABELME, labelme(shape('a', [[1, 2], [3, 4]], 'mask', mask=painted(9, 9))), 'no picture of its box'),
    (LABELME, labelme(shape('a', [[39, 2], [41, 4]], 'mask', mask=painted(3, 3))), 'no picture of its box'),
    (LABELME, labelme(imageWidth=41), 'gives it 41 x 20: fix the file'),
    (LABELME, labelme(imageWidth='x' * 99), 'gives its image the size'),
    (LABELME, labelme(), 'holds no object for the images of'),
]


@pytest.mark.parametrize(('tool', 'content', 'fault'), FAULTS)
def test_bad_files_end_in_a_sentence(tool, content, fault, tmp_path, failure):
    suffix = Path(next(iter(FILES[tool]))).suffix
    write(tmp_path, {f'a{suffix}': content})
    (tmp_path / 'classes.txt').write_text('a\nb\n')
    args = (
        tmp_path / 'src',
        tmp_path / 'images',
        tmp_path / 'train.json',
        '--classes',
        tmp_path / 'classes.txt',
    )
    assert fault in failure(tool, *args)
    assert {path.name for path in tmp_path.iterdir()} == {'src', 'images', 'classes.txt'}


@pytest.mark.parametrize(
    ('name', 'content', 'fault'),
    [
        ('data.yaml', 'names: {1: a}', 'has no list of names: give a text of a name a line, a data.yaml'),
        ('data.yaml', 'names: [a, a]', 'names a twice: remove one'),
        ('data.yaml', 'names: {0: a, 1: no}', 'holds False in place of a name, as YAML reads yes, no'),
        ('data.yaml', 'names: !!python/object/apply:os.mkdir [x]', 'does not parse (could not determine'),
        ('data.yaml', 'kpt_shape: [17, 2]\nnames: [a]', 'is of key points, which are no polygons'),
        ('file.json', '{', 'does not parse (is cut short or no JSON'),
        ('classes.txt', '\n', 'has no list of names'),
        ('none.txt', None, 'none.txt cannot be read (No such file or directory)'),
    ],
)
def test_bad_lists_of_classes_are_refused(name, content, fault, tmp_path, failure):
    write(tmp_path, FILES[YOLO])
    if content is not None:
        (tmp_path / name).write_text(content)
    args = (tmp_path / 'src', tmp_path / 'images', tmp_path / 'train.json')
    assert fault in failure(YOLO, *args, '--classes', tmp_path / name)


def test_nothing_that_exists_is_overwritten(tmp_path, failure):
    write(tmp_path, FILES[VOC])
    folders, out = (tmp_path / 'src', tmp_path / 'images'), tmp_path / 'train.json'
    out.write_text('mine')
    assert 'train.json exists: remove it' in failure(VOC, *folders, out)
    assert out.read_text() == 'mine'
    (tmp_path / 'images/two.jpg').write_bytes(b'')
    assert 'has two files for two, two.jpg and two.png: remove one' in failure(VOC, *folders, tmp_path / 'b')
    (tmp_path / 'images/two.png').unlink()
    assert 'two.jpg cannot be read' in failure(VOC, *folders, tmp_path / 'b')
    (tmp_path / 'list.txt').write_text('three\n')
    assert 'does not have (three)' in failure(VOC, *folders, tmp_path / 'b', '--list', tmp_path / 'list.txt')
    assert 'no does not exist' in failure(VOC, tmp_path / 'no', folders[1], tmp_path / 'b').replace(
        str(tmp_path) + '/', ''
    )
