from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.ops.devices import NAMES, load

CHOSEN = pytest.StashKey[list]()
# A busy or emulated processor is no fault.
settings.register_profile('patient', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('patient')


def pytest_configure(config):
    config.addinivalue_line('markers', 'devices(*names): the devices that a test of the operators is about')
    chosen = [name for given in config.getoption('--device') or () for name in given.split(',')]
    for name in chosen:
        if name not in NAMES:
            raise pytest.UsageError(f'--device must be one of {", ".join(NAMES)}, got {name!r}')
    if 'cuda' in chosen and not torch.cuda.is_available():
        raise pytest.UsageError('--device cuda: torch sees no GPU')
    config.stash[CHOSEN] = chosen or ['cpu', 'emulated', *['cuda'] * torch.cuda.is_available()]


def pytest_generate_tests(metafunc):
    if 'backend' in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker('devices')
        names = [name for name in metafunc.config.stash[CHOSEN] if not mark or name in mark.args]
        metafunc.parametrize('backend', names or [None], indirect=True, scope='session')


def pytest_collection_modifyitems(config, items):
    """Leave out tests of other devices; without a backend a test is about the CPU library."""
    left_out = []
    for item in items:
        own = hasattr(item, 'callspec') and 'backend' in item.callspec.params
        name = item.callspec.params['backend'] if own else 'cpu'
        if item.path.is_relative_to(Path(__file__).parent) and name not in config.stash[CHOSEN]:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope='session')
def backend(request):
    return load(request.param)
