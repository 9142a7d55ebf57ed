import os

import pytest

from grootv.files import write_atomically


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_target_appears_whole(tmp_path, kind):
    target = tmp_path / 'new' / kind
    with write_atomically(target) as draft:
        write(draft, kind)
        assert os.listdir(target.parent) == [draft.name] and draft.name.startswith('.')
    assert os.listdir(target.parent) == [kind]
    assert (target if kind == 'file' else target / 'part').read_text() == 'content'


@pytest.mark.parametrize('kind', ['file', 'folder', 'nothing'])
def test_failure_leaves_the_target_as_it_was(tmp_path, kind):
    target = tmp_path / 'target'
    target.write_text('precious')
    with pytest.raises(OSError, match='no space left'), write_atomically(target) as draft:
        write(draft, kind)
        raise OSError('no space left on device')
    assert target.read_text() == 'precious'
    assert os.listdir(tmp_path) == ['target']


def write(path, kind):
    if kind == 'folder':
        path.mkdir()
        (path / 'part').write_text('content')
    elif kind == 'file':
        path.write_text('content')
