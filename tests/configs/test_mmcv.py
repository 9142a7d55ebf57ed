"""Networks compute the same with mmcv's compiled operators and without them."""

import subprocess
import sys

import mmcv.ops  # noqa: F401
import pytest
import torch

from . import parts


@pytest.fixture(scope='module')
def records(scenes, tmp_path_factory) -> tuple[dict, dict]:
    """Losses, gradients and predictions of every network, with the installed operators and without."""
    if sys.modules['mmcv._ext'].__file__.endswith('.py'):
        pytest.skip('mmcv was installed without compiled operators: there is nothing to compare with')
    found = []
    for mode in ('found', 'hidden'):
        path = tmp_path_factory.mktemp('records') / 'record.pt'
        command = [sys.executable, '-m', 'tests.configs.record', str(scenes), str(path), mode]
        subprocess.run(command, cwd=parts.ROOT, check=True)
        found.append(torch.load(path))
    return tuple(found)


@pytest.mark.parametrize('name', [*parts.DETECTORS, *parts.SEGMENTORS])
def test_networks_compute_the_same_without_compiled_operators(records, name):
    compiled, ours = records
    assert ours['extension'].endswith('grootv/integrations/mmcv_ext.py')
    # Sums of float32 in another order.
    torch.testing.assert_close(ours[name], compiled[name], rtol=1e-4, atol=1e-5)
    assert all(found.numel() for found in ours[name]['found'].values())
