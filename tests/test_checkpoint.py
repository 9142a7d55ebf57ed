import os
import pickle
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch import nn

from grootv import checkpoint as module
from grootv.checkpoint import build_model, check_keys, install_safe_loader, load_checkpoint_file, load_weights
from grootv.errors import UserError
from tests.tools.tiny_run import Call


@pytest.fixture
def bomb(tmp_path) -> Path:
    """A checkpoint that makes the folder ``exploded`` when it is unpickled."""
    torch.save({'state_dict': {}, 'extra': Call(os.mkdir, str(tmp_path / 'exploded'))}, tmp_path / 'bomb.pth')
    return tmp_path / 'bomb.pth'


@pytest.fixture
def restored_loader():
    """Undo what install_safe_loader changes in MMEngine."""
    schemes = dict(CheckpointLoader._schemes)
    names = ('_safe_torch_load', 'load_url')
    helpers = {name: getattr(module.mmengine_checkpoint, name) for name in names}
    yield
    CheckpointLoader._schemes = schemes
    for name, helper in helpers.items():
        setattr(module.mmengine_checkpoint, name, helper)


def mmengine_checkpoint() -> dict:
    """The kinds of objects that a checkpoint of MMEngine's Runner holds."""
    history = HistoryBuffer([2.0, 4], [1, 1])
    meta = {'epoch': 3, 'seed': np.int64(1), 'dataset_meta': {'classes': ('a', 'b')}}
    # MMEngine executes such texts as configs when it resumes or an inferencer gets none.
    meta |= {'config': 'import os', 'cfg': 'import os'}
    return {
        'meta': meta,
        'state_dict': nn.Linear(2, 1).state_dict(),
        'message_hub': {
            'log_scalars': {'loss': history},
            'runtime_info': {'lr': np.float32(0.5), 'cfg': 'import os'},
        },
        'optimizer': torch.optim.AdamW(nn.Linear(2, 1).parameters()).state_dict(),
    }


def test_checkpoint_of_mmengine_loads_with_its_log_and_without_its_code(tmp_path, monkeypatch):
    torch.save(mmengine_checkpoint(), tmp_path / 'fine.pth')
    monkeypatch.setattr(HistoryBuffer, '_statistics_methods', {})  # as in a process that never made a log
    loaded = load_checkpoint_file(tmp_path / 'fine.pth')
    assert loaded['message_hub']['log_scalars']['loss'].statistics('mean') == 3
    assert loaded['message_hub']['runtime_info'] == {'lr': 0.5}
    assert loaded['meta'] == {'epoch': 3, 'seed': 1, 'dataset_meta': {'classes': ('a', 'b')}}


def test_checkpoint_loads_whichever_numpy_wrote_it(tmp_path):
    torch.save({'values': np.arange(3), 'one': np.float64(1)}, tmp_path / 'new.pth')
    with ZipFile(tmp_path / 'new.pth') as new, ZipFile(tmp_path / 'old.pth', 'w') as old:
        for name in new.namelist():  # NumPy 1 called its core numpy.core
            old.writestr(name, new.read(name).replace(b'numpy._core', b'numpy.core'))
    for name in ('new.pth', 'old.pth'):
        loaded = load_checkpoint_file(tmp_path / name)
        assert loaded['values'].tolist() == [0, 1, 2] and loaded['one'] == 1


def test_code_in_a_checkpoint_runs_only_if_trusted(bomb):
    with pytest.raises(UserError, match=r'holds more than weights \((posix|nt)\.mkdir\)') as error:
        load_checkpoint_file(bomb)
    assert '--trust-checkpoint' in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (bomb.parent / 'exploded').exists()
    load_checkpoint_file(bomb, trust=True)
    assert (bomb.parent / 'exploded').exists()


@pytest.mark.parametrize('content', ['bomb', 'getattr'])
def test_safe_loader_covers_every_load_of_mmengine(bomb, tmp_path, restored_loader, content, monkeypatch):
    if content == 'getattr':  # the replacement of getattr for logs gives no other attributes
        bomb = tmp_path / 'getattr.pth'
        torch.save({'x': Call(getattr, np.ndarray, 'tofile')}, bomb)
    install_safe_loader()
    loads = [
        lambda: CheckpointLoader.load_checkpoint(str(bomb), 'cpu'),
        lambda: module.mmengine_checkpoint._safe_torch_load(str(bomb)),
        lambda: PretrainedInit(str(bomb), None)(nn.Linear(1, 1)),
        lambda: PretrainedInit(str(bomb), 'backbone.')(nn.Linear(1, 1)),
    ]
    for load in loads:
        with pytest.raises(UserError, match='holds more than weights'):
            load()
    with monkeypatch.context() as patch:  # versions of MMEngine without the helper
        patch.delattr(module.mmengine_checkpoint, '_safe_torch_load')
        install_safe_loader()
        with pytest.raises(UserError, match='holds more than weights'):
            loads[0]()
    assert not (tmp_path / 'exploded').exists()

    install_safe_loader(trust=True)
    loads[0]()


@pytest.fixture
def server(tmp_path):
    """Address of a folder."""
    (tmp_path / 'served').mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / 'served'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_checkpoint_from_the_network_runs_no_code(bomb, tmp_path, server, restored_loader, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    for name, value in (('a', torch.ones(2, 2)), ('b', torch.zeros(2, 2))):
        (tmp_path / 'served' / name).mkdir()
        torch.save({'state_dict': {'weight': value}}, tmp_path / 'served' / name / 'net.pth')
    bomb.rename(tmp_path / 'served/bomb.pth')
    install_safe_loader()
    loads = [
        lambda: CheckpointLoader.load_checkpoint(f'{server}/bomb.pth', 'cpu'),
        lambda: PretrainedInit(f'{server}/bomb.pth', None)(nn.Linear(1, 1)),
    ]
    monkeypatch.setattr(
        module.mmengine_checkpoint, 'get_torchvision_models', lambda: {'x': f'{server}/bomb.pth'}
    )
    loads += [lambda: CheckpointLoader.load_checkpoint('torchvision://x')]
    for load in loads:
        with pytest.raises(UserError, match=rf'checkpoint {server}/bomb\.pth holds more than weights'):
            load()
    assert not (tmp_path / 'exploded').exists()
    for name, value in (('a', 1), ('b', 0), ('a', 1)):  # equal names, two files
        loaded = CheckpointLoader.load_checkpoint(f'{server}/{name}/net.pth', 'cpu')
        assert (loaded['state_dict']['weight'] == value).all()
    with pytest.raises(
        UserError, match=r'/none\.pth cannot be downloaded \(HTTP Error 404.*check the address'
    ):
        CheckpointLoader.load_checkpoint(f'{server}/none.pth')


@pytest.mark.parametrize('content', [b'', b'no checkpoint', pickle.dumps({'a': 1}), b'PK\x03\x04', None, [1]])
def test_file_that_is_no_whole_checkpoint_is_reported(tmp_path, content):
    path = tmp_path / 'bad.pth'
    with pytest.raises(UserError, match='does not exist'):
        load_checkpoint_file(path)
    torch.save(content or mmengine_checkpoint(), path)
    if not isinstance(content, list):
        path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    fault = 'holds a list, not a dict' if content == [1] else 'is cut short or was not written'
    with pytest.raises(UserError, match=f'checkpoint {path} {fault}'):
        load_checkpoint_file(path)


def test_safetensors_are_read_wherever_a_checkpoint_is(tmp_path, restored_loader):
    path, state = tmp_path / 'net.safetensors', nn.Linear(2, 1).state_dict()
    save_file(state, path)
    install_safe_loader()
    loaded, pretrained, model = CheckpointLoader.load_checkpoint(str(path)), BaseModule(), nn.Linear(2, 1)
    assert loaded.keys() == state.keys()
    load_weights(model, path)
    pretrained.weight, pretrained.bias = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(1))
    PretrainedInit(str(path))(pretrained)
    for found in (loaded, model.state_dict(), pretrained.state_dict()):
        assert all(torch.equal(found[name], value) for name, value in state.items())
    for dtype in (torch.int8, torch.bool, torch.complex64):
        other = tmp_path / 'other.SAFETENSORS'
        save_file({name: value.to(dtype) for name, value in state.items()}, other)
        with pytest.raises(UserError, match=f'other type: weight {dtype} instead of torch.float32'):
            load_weights(model, other)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=f'checkpoint {path} is cut short or was not written by safetensors'):
        load_checkpoint_file(path)


def layers(count: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, count))


def same(model: nn.Module, state: dict) -> bool:
    return all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_network_loads_its_own_checkpoint_and_keeps_its_weights_if_another_is_refused(tmp_path, prefix):
    model, state = layers(), layers().state_dict()
    check_keys(model, {'state_dict': state})
    del state['1.num_batches_tracked']  # older BatchNorm has none
    torch.save({'state_dict': {prefix + name: value for name, value in state.items()}}, tmp_path / 'a.pth')
    load_weights(model, tmp_path / 'a.pth')
    assert same(model, state)
    torch.save({'0.weight': torch.zeros(3, 2)}, tmp_path / 'part.pth')
    with pytest.raises(UserError, match=r'missing: 0\.bias, 1\.weight, 1\.bias and 4 more'):
        load_weights(model, tmp_path / 'part.pth')
    assert same(model, state)


def test_misfits_and_both_numbers_of_classes_are_reported(monkeypatch):
    warnings = []
    monkeypatch.setattr(module, 'warn', warnings.append)
    state = {**layers(5).state_dict(), 'z': torch.zeros(1)}
    file = {'state_dict': state, 'meta': {'dataset_meta': {'classes': tuple('abcde')}}}
    misfits = 'unknown: z; other shape: 2.weight (5, 3) instead of (2, 3), 2.bias (5,) instead of (2,)'
    counts = '; it was trained with 5 classes, a, b, c and 2 more, and the config has 2, x, y'
    with pytest.raises(UserError) as error:
        check_keys(layers(), file, classes=('x', 'y'))
    assert f'does not fit the model Sequential of the config ({misfits}{counts}): ' in str(error.value)
    # Fine-tuning needs one matching weight, and warns of the others.
    check_keys(layers(), file, strict=False, classes=('x', 'y'))
    check_keys(layers(), layers().state_dict(), strict=False, classes=('x', 'y'))
    expected = f'checkpoint fits the model Sequential in part, the rest is not loaded ({misfits}{counts})'
    assert warnings == [expected]
    with pytest.raises(UserError, match='shares no weight'):
        check_keys(layers(), {'0.weight': torch.zeros(9, 9), 'x': torch.zeros(1)}, strict=False)

    # Unknown classes, as many classes, and a file of weights alone.
    for other, classes in ((file, None), (file, tuple('vwxyz')), (state, ('x', 'y'))):
        with pytest.raises(UserError, match='other shape') as error:
            check_keys(layers(), other, classes=classes)
        assert 'it was trained' not in str(error.value)


class Net(BaseModule):
    def __init__(self, data_preprocessor: dict, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        self.layer = nn.Linear(2, 3)
        self.data_preprocessor = data_preprocessor


@pytest.fixture
def net():
    MODELS.register_module(module=Net)
    yield Config(
        dict(
            default_scope='mmengine',
            model=dict(type='Net', init_cfg=dict(type='Pretrained', checkpoint='gone.pth')),
            data_preprocessor=dict(mean=1),
        )
    )
    MODELS.module_dict.pop('Net')


def test_model_is_built_in_evaluation_mode_with_the_weights_of_a_checkpoint(net, tmp_path):
    first = build_model(net)
    assert same(build_model(net), first.state_dict())
    state = {name: value + 1 for name, value in first.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'net.pth')
    net.dump(tmp_path / 'net.py')
    for config in (net, tmp_path / 'net.py'):
        model = build_model(config, tmp_path / 'net.pth')
        assert not model.training and model.data_preprocessor == dict(mean=1)
        assert same(model, state)
    assert DefaultScope.get_current_instance().scope_name == 'mmengine'


def test_model_is_refused_without_its_settings_or_all_its_weights(net, bomb):
    with pytest.raises(UserError, match='holds more than weights'):
        build_model(net, bomb)
    with pytest.raises(UserError, match=r'does not fit the model Net .*missing: layer\.weight, layer\.bias'):
        build_model(net, bomb, trust=True)
    with pytest.raises(UserError, match='has no model: give a config'):
        build_model(Config(dict(train_cfg={})))
