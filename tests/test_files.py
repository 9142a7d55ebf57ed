import errno
import fcntl
import os
import subprocess
import sys

import mmengine
import pytest
import yaml

from grootv.errors import UserError
from grootv.files import lock_folder, read_config, remove_leftovers, write_atomically, write_named


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


def test_draft_can_keep_the_ending_of_the_name(tmp_path):
    target = tmp_path / 'new/picture.png'
    with pytest.raises(OSError, match='no space left'), write_named(target) as draft:
        draft.write_text('part')
        raise OSError('no space left on device')
    assert os.listdir(target.parent) == []
    with write_named(target) as draft:
        draft.write_text('whole')
        assert draft.name == target.name and not target.exists()
    assert os.listdir(target.parent) == [target.name] and target.read_text() == 'whole'


@pytest.mark.parametrize('name', ['target', 'a[1]*.pth'])
def test_what_killed_processes_left_is_removed_and_the_draft_of_a_living_one_stays(tmp_path, name):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    alive, other = tmp_path / f'.{name}.1.tmp', tmp_path / f'.other.{dead.pid}.tmp'
    alive.touch()
    for path in (other, tmp_path / f'.{name}.{os.getpid()}.tmp', tmp_path / f'.{name}.{dead.pid}.tmp'):
        path.mkdir()
        (path / 'part').touch()
    with write_atomically(tmp_path / name) as draft:
        draft.touch()
    assert {path.name for path in tmp_path.iterdir()} == {name, alive.name, other.name}
    (tmp_path / '.user.tmp').touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, alive.name, '.user.tmp'}


def test_folder_is_reserved_until_its_process_ends_or_is_killed(tmp_path):
    code = f'import sys\nfrom grootv.files import lock_folder\nwith lock_folder({str(tmp_path)!r}):\n'
    code += '    print("locked", flush=True)\n    sys.stdin.read()\n'
    owner = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b'locked\n'
    try:
        with (
            pytest.raises(UserError, match=f'in use by process {owner.pid} on .*: wait'),
            lock_folder(tmp_path),
        ):
            pass
    finally:
        owner.kill()
        owner.wait()
    for _ in range(2):
        with lock_folder(tmp_path):
            assert f'process {os.getpid()} on' in (tmp_path / 'train.lock').read_text()


def test_file_system_without_locks_only_warns(tmp_path, monkeypatch):
    def lockf(file, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'lockf', lockf)
    with pytest.warns(UserWarning, match='train.lock cannot be locked'), lock_folder(tmp_path):
        pass
