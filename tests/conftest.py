import sys

import pytest
import torch

collect_ignore = ['integration']  # a link to system, the name that the Slurm tests had


def pytest_addoption(parser):
    parser.addoption(
        '--device',
        action='append',
        help='where tests/ops run: cpu, emulated or cuda, several with commas; all that there are by default',
    )


@pytest.fixture(autouse=True)
def _independent_of_other_tests():
    """A fixed random state before each test; no default scope of MMEngine left behind after it."""
    torch.manual_seed(0)
    yield
    if 'mmengine.registry' in sys.modules:
        sys.modules['mmengine.registry'].DefaultScope._instance_dict.clear()
