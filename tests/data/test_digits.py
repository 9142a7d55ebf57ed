"""The data of the demos: scikit-learn's digits as images, and pasted into scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits

from tests.tools.tiny_run import load_tool, run_tool

digits = load_tool('dataset_converters/digits.py')
scenes = load_tool('dataset_converters/digit_scenes.py')
COUNTS = {'training': 6, 'validation': 3}


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('digits') / 'digits'
    digits.export(out)
    return out


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('scenes') / 'scenes'
    scenes.export(out, COUNTS, seed=0)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


def test_every_digit_is_on_one_side_and_in_its_class(images):
    names = files(images)
    target = load_digits().target
    assert sorted(int(Path(name).stem) for name in names) == list(range(1797))
    pixels = {'train': set(), 'val': set()}
    for name in names:
        side, label, _ = name.split('/')
        assert int(label) == target[int(Path(name).stem)]
        pixels[side].add(Image.open(images / name).tobytes())
    assert not pixels['train'] & pixels['val']
    for label in range(10):
        share = sum(name.startswith(f'train/{label}/') for name in names) / sum(target == label)
        assert share == pytest.approx(0.8, abs=0.01)
    image = Image.open(next(images.rglob('0000.png')))
    assert image.size == (32, 32)
    small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float)
    assert np.corrcoef(small.ravel(), load_digits().images[0].ravel())[0, 1] > 0.99


def test_equal_images_stay_together():
    equal = np.zeros((10, 8, 8))
    equal[:5, 0, 0] = np.arange(5)  # five different ones, then five times the same
    equal[5:, 1, 1] = 16
    sides = digits.split(equal, np.zeros(10, dtype=int))
    same = {side: len(set(indices) & {5, 6, 7, 8, 9}) for side, indices in sides.items()}
    assert sorted(same.values()) == [0, 5]


def test_an_incomplete_folder_is_completed_and_a_complete_or_foreign_one_left_alone(images, tmp_path, capsys):
    before = times(images)
    assert run_tool('dataset_converters/digits.py', images) == 0
    assert times(images) == before

    part = tmp_path / 'digits'
    name = next(iter(files(images)))
    (part / name).parent.mkdir(parents=True)
    (part / name).write_bytes(b'half an image')
    digits.export(part)
    assert files(part) == files(images)
    (part / 'letter.txt').write_text('mine')
    before = times(part)
    assert run_tool('dataset_converters/digits.py', part) == 1
    assert 'letter.txt' in capsys.readouterr().err and times(part) == before
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


# Scenes ------------------------------------------------------------------------------------------


def test_both_formats_show_the_same_digits(exported):
    for side, count in COUNTS.items():
        content = json.loads((exported / f'annotations/{side}.json').read_text())
        assert [image['id'] for image in content['images']] == list(range(1, count + 1))
        assert [category['name'] for category in content['categories']] == list('0123456789')
        for image in content['images']:
            assert Image.open(exported / f'images/{side}' / image['file_name']).size == (128, 128)
            path = (exported / f'annotations/{side}' / image['file_name']).with_suffix('.png')
            label_map = np.asarray(Image.open(path))
            assert set(np.unique(label_map)) <= set(range(scenes.BACKGROUND, scenes.BACKGROUND + 11))
            own = [entry for entry in content['annotations'] if entry['image_id'] == image['id']]
            assert 3 <= len(own) <= 5
            drawn = np.full((128, 128), scenes.BACKGROUND, np.uint8)
            for entry in own:
                assert entry['iscrowd'] == 0
                codes = coco_mask.frPyObjects(entry['segmentation'], 128, 128)
                mask = coco_mask.decode(coco_mask.merge(codes)).astype(bool)
                assert mask.sum() == pytest.approx(entry['area'], rel=0.02)
                box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
                assert np.abs(box - entry['bbox']).max() <= 1
                drawn[mask] = scenes.BACKGROUND + entry['category_id']
            assert (drawn == label_map).mean() > 0.998


def test_training_and_validation_show_different_digits(monkeypatch):
    data = load_digits()
    sides = digits.split(data.images, data.target)
    for side, own in scenes.SIDES.items():
        seen = set()
        monkeypatch.setattr(
            scenes, 'arrange', lambda hand, noise, seen=seen: seen.update(i.tobytes() for _, i in hand) or []
        )
        list(scenes.scenes(side, 8, seed=0))
        assert seen and seen <= {data.images[index].tobytes() for index in sides[own]}


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


def test_scenes_depend_on_the_seed_alone_and_those_of_another_recipe_stay(exported, tmp_path, capsys):
    before, content = times(exported), files(exported)
    scenes.export(tmp_path / 'same', COUNTS, seed=0)
    scenes.export(tmp_path / 'other', dict(training=1, validation=1), seed=1)
    assert files(tmp_path / 'same') == content
    name = 'images/training/00001.jpg'
    assert files(tmp_path / 'other')[name] != content[name]
    options = [f'--{side}={count}' for side, count in COUNTS.items()]
    for more, sentence in (
        ((), ''),
        (('--seed=7',), 'does not hold these scenes'),
        (('--validation=1',), 'does not hold these scenes'),
        (('--training=0',), "'training': 0"),
    ):
        assert run_tool('dataset_converters/digit_scenes.py', exported, *options, *more) == bool(sentence)
        assert sentence in capsys.readouterr().err
    assert times(exported) == before
