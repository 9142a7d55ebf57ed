"""The index that OpenMMLab's tools read names files that exist and numbers that are true."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).resolve().parents[2]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
METAFILES = {name: yaml.safe_load((ROOT / name).read_text()) for name in INDEX}
ENTRIES = [entry for content in METAFILES.values() for entry in content['Models']]


def test_every_metafile_is_in_the_index():
    found = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('metafile.yml')}
    assert found == set(INDEX)


def test_every_config_beside_a_metafile_is_in_it():
    for name in METAFILES:
        stems = {path.stem for path in (ROOT / name).parent.glob('*.py')}
        assert stems == {entry['Name'] for entry in METAFILES[name]['Models']}


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['Name'])
def test_an_entry_is_true(entry):
    assert Path(entry['Config']).stem == entry['Name']
    collections = {c['Name']: c for content in METAFILES.values() for c in content['Collections']}
    collection = collections[entry['In Collection']]
    assert (ROOT / collection['README']).is_file()
    assert (ROOT / collection['Code']['URL']).is_file()
    assert entry['Name'] in (ROOT / collection['README']).read_text()

    cfg = Config.fromfile(ROOT / entry['Config'])
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(dict(cfg.model))
    assert sum(p.numel() for p in model.parameters()) == entry['Metadata']['Parameters']
    assert 'Weights' not in entry or entry['Weights'].startswith('https://')
