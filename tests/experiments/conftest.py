import sys

import pytest
import torch

from tests.tools.tiny_run import ROOT

sys.path.append(str(ROOT / 'experiments'))  # as for a script of that folder


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
