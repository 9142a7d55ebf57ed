from collections.abc import Callable
from functools import cache

import pytest

from tests.tools.tiny_run import TinyRun, train_tiny


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> Callable[[str], TinyRun]:
    """The finished run of a task; trained when it is first asked for."""
    return cache(lambda task: train_tiny(tmp_path_factory.mktemp(task), task))
