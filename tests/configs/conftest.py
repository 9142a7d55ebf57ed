import json
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset

from tests.tools.tiny_run import write_scenes


@pytest.fixture(scope='session')
def scenes(tmp_path_factory) -> Path:
    """A few scenes of digits in COCO's and ADE20K's formats, with COCO's names and ADE20K's folders."""
    folder = write_scenes(tmp_path_factory.mktemp('scenes') / 'scenes', 3, 3)
    names = enumerate(CocoDataset.METAINFO['classes'], 1)
    categories = [dict(id=number, name=name) for number, name in names]
    for path in folder.glob('annotations/*.json'):
        path.write_text(json.dumps(dict(json.loads(path.read_text()), categories=categories)))
    return folder
