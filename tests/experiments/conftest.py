import sys

import pytest
import torch

from tests.tools.tiny_run import ROOT, TinyRun, train_tiny

sys.path.append(str(ROOT / 'experiments'))  # as for a script of that folder


@pytest.fixture(scope='session')
def classifier(tmp_path_factory) -> TinyRun:
    """A finished training of the tiny classifier."""
    return train_tiny(tmp_path_factory.mktemp('classification'), 'classification')


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
