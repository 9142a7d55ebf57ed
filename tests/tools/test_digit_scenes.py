import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits

from tests.tools.tiny_run import load_tool, run_tool

scenes = load_tool('dataset_converters/digit_scenes.py')
COUNTS = {'training': 6, 'validation': 3}


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('scenes') / 'scenes'
    scenes.export(out, COUNTS, seed=0)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def coco(folder: Path, side: str) -> dict:
    return json.loads((folder / f'annotations/{side}.json').read_text())


def labels(folder: Path, side: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / f'annotations/{side}' / name.replace('.jpg', '.png')))


def test_every_scene_is_there_in_both_formats(exported):
    for side, count in COUNTS.items():
        content = coco(exported, side)
        assert [image['id'] for image in content['images']] == list(range(1, count + 1))
        assert [category['name'] for category in content['categories']] == list('0123456789')
        for image in content['images']:
            assert Image.open(exported / f'images/{side}' / image['file_name']).size == (128, 128)
            assert labels(exported, side, image['file_name']).shape == (128, 128)


def test_polygons_boxes_and_areas_are_those_of_the_label_map(exported):
    content = coco(exported, 'training')
    for image in content['images']:
        label_map = labels(exported, 'training', image['file_name'])
        own = [entry for entry in content['annotations'] if entry['image_id'] == image['id']]
        assert 3 <= len(own) <= 5
        drawn = np.full_like(label_map, scenes.BACKGROUND)
        for entry in own:
            assert entry['iscrowd'] == 0
            codes = coco_mask.frPyObjects(entry['segmentation'], 128, 128)
            mask = coco_mask.decode(coco_mask.merge(codes)).astype(bool)
            assert mask.sum() == pytest.approx(entry['area'], rel=0.02)
            x, y, width, height = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
            assert np.abs(np.subtract([x, y, width, height], entry['bbox'])).max() <= 1
            drawn[mask] = scenes.BACKGROUND + entry['category_id']
        assert (drawn == label_map).mean() > 0.998


def test_no_label_but_background_and_digits(exported):
    for side, count in COUNTS.items():
        found = {int(v) for n in range(count) for v in np.unique(labels(exported, side, f'{n + 1:05d}.png'))}
        assert scenes.BACKGROUND in found
        assert found <= set(range(scenes.BACKGROUND, scenes.BACKGROUND + 11))


def test_training_and_validation_show_different_digits(monkeypatch):
    shown: dict[str, set[bytes]] = {}
    cut_out = scenes.cut_out
    for side in COUNTS:
        shown[side] = set()

        def remember(digit, image, noise, seen=shown[side]):
            seen.add(image.tobytes())
            return cut_out(digit, image, noise)

        monkeypatch.setattr(scenes, 'cut_out', remember)
        list(scenes.scenes(side, 8, seed=0))
    images = {image.tobytes() for image in load_digits().images}
    assert shown['training'] <= images and shown['validation'] <= images
    assert shown['training'] and not shown['training'] & shown['validation']


def test_a_covered_digit_keeps_what_can_be_seen():
    noise = np.random.default_rng(3)
    data = load_digits()
    placed = scenes.arrange([(int(data.target[i]), data.images[i]) for i in range(8)], noise)
    covered = np.zeros((128, 128), int)
    for sticker in placed:
        covered += sticker.mask
        assert scenes.in_one_piece(sticker.mask)
        assert sticker.mask.sum() >= scenes.MIN_VISIBLE * sticker.pixels
    assert covered.max() == 1
    assert any(sticker.mask.sum() < sticker.pixels for sticker in placed)


@pytest.mark.parametrize(
    'rows, whole',
    [
        (['.....', '.###.', '.###.', '.....'], True),
        (['.....', '.#.#.', '.#.#.', '.....'], False),  # two pieces
        (['.###.', '.#.#.', '.###.', '.....'], False),  # a hole
        (['.....', '.....', '.....', '.....'], False),
    ],
)
def test_in_one_piece(rows, whole):
    mask = np.array([[cell == '#' for cell in row] for row in rows])
    assert scenes.in_one_piece(mask) is whole


def test_the_polygon_of_a_square_runs_along_its_pixels():
    mask = np.zeros((128, 128), bool)
    mask[2:6, 3:9] = True
    (polygon,) = scenes.polygons(mask)
    points = np.reshape(polygon, (-1, 2))
    assert np.abs(points.min(0) - [3, 2]).max() <= 0.25
    assert np.abs(points.max(0) - [9, 6]).max() <= 0.25


def test_the_same_seed_gives_the_same_files_and_another_seed_others(exported, tmp_path):
    scenes.export(tmp_path / 'same', COUNTS, seed=0)
    assert files(tmp_path / 'same') == files(exported)
    scenes.export(tmp_path / 'other', COUNTS, seed=1)
    name = 'images/training/00001.jpg'
    assert files(tmp_path / 'other')[name] != files(exported)[name]


def test_a_second_call_writes_nothing(exported):
    before = {path: path.stat().st_mtime_ns for path in exported.rglob('*')}
    scenes.export(exported, COUNTS, seed=0)
    assert {path: path.stat().st_mtime_ns for path in exported.rglob('*')} == before


@pytest.mark.parametrize('seed, counts', [(0, {'training': 1, 'validation': 1}), (7, COUNTS)])
def test_scenes_of_another_recipe_are_left_alone(exported, seed, counts, capsys):
    before = files(exported)
    options = [f'--{side}={count}' for side, count in counts.items()]
    assert run_tool('dataset_converters/digit_scenes.py', exported, f'--seed={seed}', *options) == 1
    assert 'does not hold these scenes' in capsys.readouterr().err
    assert files(exported) == before


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, 'annotation', stop)
    with pytest.raises(KeyboardInterrupt):
        scenes.export(tmp_path / 'scenes', COUNTS, seed=0)
    assert not list(tmp_path.iterdir())


def test_counts_must_be_positive(tmp_path, capsys):
    assert run_tool('dataset_converters/digit_scenes.py', tmp_path / 'scenes', '--training=0') == 1
    assert "'training': 0" in capsys.readouterr().err
