import pickle
from collections.abc import Callable
from functools import cache

import pytest

from tests.tools.tiny_run import run_tool


@pytest.fixture(scope='session')
def predictions(tiny_run, tmp_path_factory) -> Callable[[str], list[dict]]:
    """What tools/test.py predicts for the validation images of a task, with further arguments."""

    def predict(task: str, *args: str) -> list[dict]:
        run, folder = tiny_run(task), tmp_path_factory.mktemp('predictions')
        out = folder / 'all.pkl'
        args = ('--work-dir', folder, '--out', out, *args)
        assert run_tool('test.py', run.config, run.checkpoint, *args) == 0
        return pickle.loads(out.read_bytes())  # written by the tool just now

    return cache(predict)
