import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.tiny_run import ROOT

sys.path.append(str(ROOT / 'experiments'))  # as for a script of that folder


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_stamps(tmp_path, monkeypatch):
    """A folder with photographs of noise, and one drawing."""
    import stamps

    folder = tmp_path / stamps.INSIDE / 'animals'
    folder.mkdir(parents=True)
    for number in range(6):
        picture = np.random.default_rng(number).integers(0, 256, (100, 90, 4), dtype=np.uint8)
        picture[..., 3] = 255
        picture[:20, :, 3] = 0
        Image.fromarray(picture).save(folder / f'{"abcdef"[number]}.png')
    drawing = np.zeros((100, 90, 4), np.uint8)
    drawing[30:, :, 3] = 255
    Image.fromarray(drawing).save(folder / '7.png')
    monkeypatch.setattr(stamps, 'FOLDERS', (tmp_path,))
    stamps.stamps.cache_clear()
    yield
    stamps.stamps.cache_clear()
