from pathlib import Path

import pytest

from .miniatures import write_ade, write_coco


@pytest.fixture(scope='session')
def coco(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('coco')
    write_coco(root)
    return root


@pytest.fixture(scope='session')
def ade(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('ade')
    write_ade(root)
    return root
