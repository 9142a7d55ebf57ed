from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.tools.tiny_run import load_tool, run_tool

digits = load_tool('dataset_converters/digits.py')


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('digits') / 'digits'
    digits.export(out)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_every_image_is_on_one_side_and_in_its_class(exported):
    names = files(exported)
    assert len(names) == 1797
    indices = [int(Path(name).stem) for name in names]
    assert sorted(indices) == list(range(1797))
    target = load_digits().target
    for name in names:
        side, label, _ = name.split('/')
        assert side in ('train', 'val')
        assert int(label) == target[int(Path(name).stem)]


def test_each_class_keeps_about_four_fifths_to_train():
    data = load_digits()
    sides = digits.split(data.images, data.target)
    for label in range(10):
        share = sum(data.target[sides['train']] == label) / sum(data.target == label)
        assert share == pytest.approx(0.8, abs=0.01)


def test_no_image_is_on_both_sides(exported):
    pixels = {
        side: {Image.open(path).tobytes() for path in (exported / side).rglob('*.png')}
        for side in ('train', 'val')
    }
    assert not pixels['train'] & pixels['val']


def test_equal_images_stay_together():
    images = np.zeros((10, 8, 8))
    images[:5, 0, 0] = np.arange(5)  # five different ones, then five times the same
    images[5:, 1, 1] = 16
    sides = digits.split(images, np.zeros(10, dtype=int))
    same = {side: len(set(indices) & {5, 6, 7, 8, 9}) for side, indices in sides.items()}
    assert sorted(same.values()) == [0, 5]


def test_images_are_enlarged_to_32_pixels(exported):
    name = next(exported.rglob('0000.png'))
    image = Image.open(name)
    assert image.size == (32, 32)
    small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float)
    original = load_digits().images[0] * 255 / 16
    assert np.corrcoef(small.ravel(), original.ravel())[0, 1] > 0.99


def test_a_second_call_writes_nothing(exported, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in exported.rglob('*')}
    assert run_tool('dataset_converters/digits.py', exported) == 0
    assert {path: path.stat().st_mtime_ns for path in exported.rglob('*')} == before


def test_an_incomplete_folder_is_completed_with_the_same_files(exported, tmp_path):
    part = tmp_path / 'digits'
    name = next(iter(files(exported)))
    (part / name).parent.mkdir(parents=True)
    (part / name).write_bytes(b'half an image')
    digits.export(part)
    assert files(part) == files(exported)
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / 'letter.txt').write_text('mine')
    assert run_tool('dataset_converters/digits.py', tmp_path) == 1
    assert 'letter.txt' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['letter.txt']
