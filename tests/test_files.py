import os

import mmengine
import pytest
import yaml

from grootv.files import read_config, write_atomically


@pytest.mark.parametrize('name', ['config.yaml', 'config.yml', 'config.json'])
def test_config_in_a_data_format_is_data(tmp_path, name):
    (tmp_path / name).write_text('{"model": {"depths": [2, 2]}}')
    assert read_config(tmp_path / name).model.depths == [2, 2]
    (tmp_path / name).write_text(f'model: !!python/object/apply:os.mkdir ["{tmp_path}/ran"]')
    for read in (read_config, mmengine.load):
        with pytest.raises((yaml.YAMLError, ValueError)):
            read(tmp_path / name)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('kind', ['file', 'folder', 'nothing'])
def test_target_appears_whole_and_stays_as_it_was_after_a_failure(tmp_path, kind):
    def write(path):
        if kind == 'folder':
            path.mkdir()
            (path / 'part').write_text('content')
        elif kind == 'file':
            path.write_text('content')

    (tmp_path / 'target').write_text('precious')
    with pytest.raises(OSError, match='no space left'), write_atomically(tmp_path / 'target') as draft:
        write(draft)
        raise OSError('no space left on device')
    assert (tmp_path / 'target').read_text() == 'precious'
    assert os.listdir(tmp_path) == ['target']
    if kind != 'nothing':
        target = tmp_path / 'new' / kind
        with write_atomically(target) as draft:
            write(draft)
            assert os.listdir(target.parent) == [draft.name] and draft.name.startswith('.')
        assert os.listdir(target.parent) == [kind]
        assert (target if kind == 'file' else target / 'part').read_text() == 'content'
