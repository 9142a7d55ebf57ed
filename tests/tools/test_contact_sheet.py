from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.tiny_run import load_tool, run_tool

TOOL = 'analysis_tools/contact_sheet.py'
GAP = load_tool(TOOL).GAP
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, colour, size in (('a', RED, (20, 10)), ('b/c', GREEN, (20, 10)), ('d', BLUE, (10, 10))):
        path = tmp_path / f'pictures/{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', size, colour).save(path)
    return tmp_path / 'pictures'


def test_pictures_are_placed_row_by_row(folder, tmp_path):
    out = tmp_path / 'new/sheet.png'
    assert run_tool(TOOL, folder, '--out', out) == 0
    page = np.asarray(Image.open(out))
    assert page.shape == (2 * 10 + 3 * GAP, 2 * 20 + 3 * GAP, 3)
    top, bottom = GAP + 5, 2 * GAP + 10 + 5
    left, right = GAP + 10, 2 * GAP + 20 + 10
    assert tuple(page[top, left]) == RED and tuple(page[top, right]) == GREEN
    assert tuple(page[bottom, left]) == BLUE and tuple(page[bottom, right]) == (255, 255, 255)
    assert tuple(page[bottom, GAP + 2]) == (255, 255, 255)  # the narrow one is in the middle
    assert run_tool(TOOL, folder, '--out', out, '--count', 1, '--scale', 2) == 0
    assert Image.open(out).size == (40 + 2 * GAP, 20 + 2 * GAP)


def test_bad_input_is_reported_in_one_sentence(folder, tmp_path, capsys):
    (folder / 'e.png').write_bytes(b'no picture')
    (tmp_path / 'empty').mkdir()
    for arguments, text in (
        ([folder], 'e.png cannot be read'),
        ([tmp_path / 'empty'], 'holds no'),
        ([tmp_path / 'nowhere'], 'nowhere does not exist'),
        ([folder, '--columns', 0], 'must be positive, got 8, 0, 1.0'),
    ):
        assert run_tool(TOOL, *arguments, '--out', tmp_path / 'sheet.png') == 1
        error = capsys.readouterr().err
        assert text in error and error.count('\n') == 1
    assert not (tmp_path / 'sheet.png').exists()
