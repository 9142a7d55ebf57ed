"""Masks of colours as label maps."""

import os
import shutil

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from grootv.datasets import SegDataset
from tests.tools.tiny_run import run_tool

TOOL = 'dataset_converters/colour_masks.py'
COLOURS = 'name,r,g,b\nsky, 0, 0, 255\n0 128 0 tree top\nnone 9 9 9\ncar;1;2;3\n'


@pytest.fixture
def folders(tmp_path):
    """A mask with a palette and one without; the text of the colours."""
    (tmp_path / 'src/a').mkdir(parents=True)
    (tmp_path / 'colours.txt').write_text(COLOURS)
    pixels = np.array([[[0, 0, 255], [0, 128, 0]], [[9, 9, 9], [0, 0, 255]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'src/a/one.png')
    Image.fromarray(pixels[:1].repeat(2, axis=0)).convert('P', palette=Image.Palette.ADAPTIVE).save(
        tmp_path / 'src/two.gif'
    )
    return tmp_path / 'src', tmp_path / 'out', '--colours', tmp_path / 'colours.txt'


def test_colours_become_numbers_that_training_reads(folders, capsys):
    src, out, *_ = folders
    assert run_tool(TOOL, *folders) == 0
    assert np.asarray(Image.open(out / 'a/one.png')).tolist() == [[0, 1], [255, 0]]
    assert np.asarray(Image.open(out / 'two.png')).tolist() == [[0, 1], [0, 1]]
    printed = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert '0 sky 50' in printed and '1 tree top 37.5' in printed and '255 none 12.5' in printed
    assert 'no pixel of car' in printed and printed[-1] == f'{out}: 2 label maps, 3 classes'
    assert {path.name for path in out.iterdir()} == {'a', 'two.png'}
    init_default_scope('mmseg')
    data = SegDataset(
        data_prefix=dict(img_path=str(src), seg_map_path=str(out)),
        metainfo=dict(classes=('sky', 'tree top', 'car')),
        pipeline=[],
    )
    assert data.summary().counts == {'sky': 4, 'tree top': 3, 'car': 0}


def test_a_colour_without_a_name_is_refused_and_finished_maps_are_kept(folders, failure, capsys):
    src, out, *_ = folders
    Image.new('RGB', (3, 1), (7, 8, 9)).save(src / 'z.png')
    sentence = failure(TOOL, *folders)
    assert (
        'z.png has 3 pixels of 1 colours that --colours does not name, most of them 7 8 9: name it'
        in sentence
    )
    assert not out.exists()
    Image.fromarray(np.array([[0, 256]], dtype=np.uint16)).save(src / 'z.png')
    assert 'z.png cannot be read (its pixels have more than eight bits' in failure(TOOL, *folders)
    kept = out.with_name('.out.partial') / 'a/one.png'
    before = kept.stat().st_ctime_ns
    folders[-1].write_text(COLOURS + 'z 7 8 9')
    (src / 'z.png').write_bytes(b'')
    assert 'z.png cannot be read' in failure(TOOL, *folders)
    assert kept.stat().st_ctime_ns > before, 'of other colours'
    before = kept.stat().st_ctime_ns
    Image.new('RGB', (3, 1), (5, 5, 5)).save(src / 'z.png')
    failure(TOOL, *folders)
    assert kept.stat().st_ctime_ns == before
    (src / 'two.gif').unlink()
    older = kept.stat().st_mtime_ns - 10**9
    Image.new('RGB', (2, 2), (0, 0, 255)).save(src / 'a/one.png')
    os.utime(src / 'a/one.png', ns=(older, older))
    failure(TOOL, *folders)
    assert np.asarray(Image.open(kept)).tolist() == [[0, 0], [0, 0]], 'of a mask from a backup'
    (src / 'z.png').unlink()
    assert run_tool(TOOL, *folders) == 0
    assert [path.name for path in out.rglob('*.png')] == ['one.png'], 'none of a mask that is gone'
    shutil.rmtree(out)
    Image.new('RGB', (3, 1), (5, 5, 5)).save(src / 'z.png')
    assert run_tool(TOOL, *folders, '--others-as-none') == 0
    assert 'colours without a name: 3 pixels of 1 masks (z)' in capsys.readouterr().out
    assert np.asarray(Image.open(out / 'z.png')).tolist() == [[255] * 3]
    assert 'out exists: remove it, or give another folder' in failure(TOOL, *folders)


@pytest.mark.parametrize(
    ('text', 'fault'),
    [
        ('0 70 130 180 sky', "'0 70 130 180 sky' begins with more than the three numbers of a colour"),
        ('1 128 0 0', 'begins with more than'),
        ('sky 0 0', "line 1: a name and three numbers from 0 to 255 are needed, got 'sky 0 0'"),
        ('sky 0 0 256', 'line 1: a name and three numbers'),
        ('0 0 5', 'line 1: a name and three numbers'),
        ('a 0 0 5\nb 0 0 5', 'repeats a name or a colour, remove one'),
        ('', 'names 0 classes, and 1 to 255 are possible'),
        (''.join(f'c{n} 0 {n % 256} {n // 256}\n' for n in range(256)), 'names 256 classes'),
    ],
)
def test_bad_colours_are_refused(text, fault, folders, failure):
    folders[-1].write_text(text)
    assert fault in failure(TOOL, *folders)
    assert not folders[1].exists()
