import os
import pickle
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import nn

from grootv.utils import checkpoint as module
from grootv.utils.checkpoint import check_keys, install_safe_loader, load_checkpoint_file, load_weights
from grootv.utils.errors import UserError


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f'touch {self.trace}',)


@pytest.fixture
def bomb(tmp_path) -> Path:
    path = tmp_path / 'bomb.pth'
    torch.save({'state_dict': {}, 'extra': Bomb(tmp_path / 'exploded')}, path)
    return path


@pytest.fixture
def restored_loader():
    """Undo what install_safe_loader changes in MMEngine."""
    schemes = dict(CheckpointLoader._schemes)
    helper = module.mmengine_checkpoint._safe_torch_load
    yield
    CheckpointLoader._schemes = schemes
    module.mmengine_checkpoint._safe_torch_load = helper


def mmengine_checkpoint() -> dict:
    """The kinds of objects that a checkpoint of MMEngine's Runner holds."""
    history = HistoryBuffer()
    history.update(2.0)
    history.update(4)
    return {
        'meta': {'epoch': 3, 'seed': np.int64(1), 'dataset_meta': {'classes': ('a', 'b')}},
        'state_dict': nn.Linear(2, 1).state_dict(),
        'message_hub': {'log_scalars': {'loss': history}, 'runtime_info': {'lr': np.float32(0.5)}},
        'optimizer': torch.optim.AdamW(nn.Linear(2, 1).parameters()).state_dict(),
    }


def test_a_checkpoint_of_mmengine_loads_with_its_log(tmp_path):
    torch.save(mmengine_checkpoint(), tmp_path / 'fine.pth')
    loaded = load_checkpoint_file(tmp_path / 'fine.pth')
    assert loaded['message_hub']['log_scalars']['loss'].mean() == 3
    assert loaded['meta']['dataset_meta']['classes'] == ('a', 'b')


def test_it_loads_in_a_process_that_never_made_a_log(tmp_path):
    torch.save(mmengine_checkpoint(), tmp_path / 'fine.pth')
    code = f"""
from grootv.utils.checkpoint import load_checkpoint_file
buffer = load_checkpoint_file({str(tmp_path / 'fine.pth')!r})['message_hub']['log_scalars']['loss']
assert buffer.statistics('mean') == 3
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_it_loads_whatever_numpy_wrote_it(tmp_path):
    torch.save({'values': np.arange(3), 'one': np.float64(1)}, tmp_path / 'new.pth')
    with ZipFile(tmp_path / 'new.pth') as new, ZipFile(tmp_path / 'old.pth', 'w') as old:
        for name in new.namelist():  # NumPy 1 called its core numpy.core
            old.writestr(name, new.read(name).replace(b'numpy._core', b'numpy.core'))
    for name in ('new.pth', 'old.pth'):
        loaded = load_checkpoint_file(tmp_path / name)
        assert loaded['values'].tolist() == [0, 1, 2] and loaded['one'] == 1


def test_code_in_a_checkpoint_does_not_run(bomb):
    with pytest.raises(UserError, match=r'holds more than weights \((posix|nt)\.system\)') as error:
        load_checkpoint_file(bomb)
    assert '--trust-checkpoint' in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (bomb.parent / 'exploded').exists()


def test_code_in_a_checkpoint_runs_where_the_user_trusts_it(bomb):
    load_checkpoint_file(bomb, trust=True)
    assert (bomb.parent / 'exploded').exists()


def test_other_versions_of_mmengine_are_safe_too(bomb, restored_loader, monkeypatch):
    monkeypatch.delattr(module.mmengine_checkpoint, '_safe_torch_load')
    install_safe_loader()
    with pytest.raises(UserError, match='holds more than weights'):
        CheckpointLoader.load_checkpoint(str(bomb), 'cpu')


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_pretrained_weights_are_read_as_safely(bomb, restored_loader, prefix):
    install_safe_loader()
    with pytest.raises(UserError, match='holds more than weights'):
        PretrainedInit(str(bomb), prefix)(nn.Linear(1, 1))
    assert not (bomb.parent / 'exploded').exists()


@pytest.mark.parametrize('name', ['bomb', 'getattr'])
def test_mmengine_does_not_fall_back_to_full_unpickling(bomb, tmp_path, restored_loader, name):
    if name == 'getattr':  # the loader of logs must not open a way to other attributes
        bomb = tmp_path / 'getattr.pth'
        torch.save({'x': Attribute()}, bomb)
    install_safe_loader()
    with pytest.raises(UserError, match='holds more than weights'):
        CheckpointLoader.load_checkpoint(str(bomb), 'cpu')
    with pytest.raises(UserError, match='holds more than weights'):
        module.mmengine_checkpoint._safe_torch_load(str(bomb))
    assert not (tmp_path / 'exploded').exists()

    install_safe_loader(trust=True)
    CheckpointLoader.load_checkpoint(str(bomb), 'cpu')


class Attribute:
    def __reduce__(self):
        return getattr, (np.ndarray, 'tofile')


def test_a_config_inside_a_checkpoint_is_dropped(tmp_path):
    # MMEngine would execute it when it resumes.
    torch.save({'state_dict': {}, 'meta': {'config': 'import os', 'epoch': 1}}, tmp_path / 'c.pth')
    assert load_checkpoint_file(tmp_path / 'c.pth')['meta'] == {'epoch': 1}


@pytest.mark.parametrize('content', [b'', b'no checkpoint', pickle.dumps({'a': 1}), b'PK\x03\x04'])
def test_a_damaged_file_is_told_as_such(tmp_path, content):
    path = tmp_path / 'bad.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'checkpoint {path} is cut short or was not written'):
        load_checkpoint_file(path)


def test_a_file_cut_short_is_told_as_such(tmp_path):
    path = tmp_path / 'short.pth'
    torch.save(mmengine_checkpoint(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match='is cut short'):
        load_checkpoint_file(path)


def test_a_missing_file_and_a_list_are_told(tmp_path):
    with pytest.raises(UserError, match='does not exist'):
        load_checkpoint_file(tmp_path / 'none.pth')
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(UserError, match='holds a list, not a dict'):
        load_checkpoint_file(tmp_path / 'list.pth')


def test_matching_weights_pass_with_and_without_prefix():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = model.state_dict()
    check_keys(model, {'state_dict': state})
    check_keys(model, {f'module.{name}': value for name, value in state.items()})
    del state['1.num_batches_tracked']  # older BatchNorm has none
    check_keys(model, state)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_network_takes_the_weights_of_its_own_checkpoint(tmp_path, prefix):
    source, model = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    state = source.state_dict()
    del state['1.num_batches_tracked']  # older BatchNorm has none
    torch.save({'state_dict': {prefix + name: value for name, value in state.items()}}, tmp_path / 'a.pth')
    load_weights(model, tmp_path / 'a.pth')
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_a_network_takes_nothing_of_a_checkpoint_that_is_not_its_own(bomb, tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({'0.weight': torch.zeros(3, 2)}, tmp_path / 'part.pth')
    for path, sentence in ((tmp_path / 'part.pth', 'missing: 0.bias'), (bomb, 'holds more than weights')):
        with pytest.raises(UserError, match=sentence):
            load_weights(model, path)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_all_kinds_of_misfit_are_named_the_first_three_each():
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in 'abcdef'})
    state = model.state_dict()
    for name in 'abcd':
        del state[f'{name}.weight']
    state['e.weight'] = torch.zeros(2, 1)
    state['z'] = torch.zeros(1)
    with pytest.raises(UserError) as error:
        check_keys(model, state)
    text = str(error.value)
    assert 'missing: a.weight, b.weight, c.weight and 1 more' in text
    assert 'unknown: z' in text
    assert 'other shape: e.weight (2, 1) instead of (1, 1)' in text


def test_fine_tuning_needs_one_match():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    check_keys(model, {'0.weight': torch.zeros(3, 2)}, strict=False)
    with pytest.raises(UserError, match='shares no weight'):
        check_keys(model, {'0.weight': torch.zeros(9, 9), 'x': torch.zeros(1)}, strict=False)


def classifier(count: int) -> dict:
    """A checkpoint of a network with ``count`` classes."""
    state = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, count)).state_dict()
    return {'state_dict': state, 'meta': {'dataset_meta': {'classes': tuple('abcdefgh'[:count])}}}


def test_another_number_of_classes_is_told_with_both():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(UserError) as error:
        check_keys(model, classifier(5), classes=('x', 'y'))
    assert '1.weight (5, 3) instead of (2, 3), 1.bias (5,) instead of (2,)' in str(error.value)
    assert '; it was trained with 5 classes, a, b, c and 2 more, and the config has 2, x, y' in str(
        error.value
    )

    for classes in (None, tuple('vwxyz')):  # unknown, or as many
        with pytest.raises(UserError) as error:
            check_keys(model, classifier(5), classes=classes)
        assert 'it was trained' not in str(error.value)
    with pytest.raises(UserError, match='other shape'):
        check_keys(model, classifier(5)['state_dict'], classes=('x', 'y'))  # nothing but weights


def test_fine_tuning_for_other_classes_tells_once_what_stays(monkeypatch):
    told = []
    monkeypatch.setattr(module, 'print_log', lambda text, *_: told.append(text))
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    check_keys(model, classifier(5), strict=False, classes=('x', 'y'))
    (text,) = told
    assert text.startswith('checkpoint fits the model Sequential in part, the rest is not loaded (')
    assert 'other shape: 1.weight (5, 3) instead of (2, 3)' in text
    assert 'trained with 5 classes' in text and 'the config has 2' in text

    check_keys(model, classifier(2), strict=False, classes=('x', 'y'))
    assert len(told) == 1
