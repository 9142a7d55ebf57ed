import sys
from collections.abc import Callable
from functools import cache

import pytest
import torch

import grootv  # noqa: F401 # before the libraries that import mmcv's operators

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


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory):
    """The finished run of a task, a TinyRun of tests/tools; trained when it is first asked for."""
    from tests.tools.tiny_run import train_tiny  # needs OpenMMLab, the operators' tests need torch alone

    return cache(lambda task: train_tiny(tmp_path_factory.mktemp(task), task))


@pytest.fixture
def failure(capsys) -> Callable[..., str]:
    """Run a tool that must fail with one sentence; the sentence."""

    def run(name: str, *args: object, options: tuple[str, ...] = ()) -> str:
        from tests.tools.tiny_run import run_tool

        assert run_tool(name, *args, options=options) == 1
        error = capsys.readouterr().err
        assert 'Traceback' not in error
        return error.strip().splitlines()[-1]

    return run
