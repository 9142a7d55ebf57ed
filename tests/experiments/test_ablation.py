import ablation
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from grootv.models import GrootV
from tests.tools.tiny_run import ROOT

ARCH = dict(embed_dims=8, depths=[1, 2, 1, 1])


def network(**options) -> GrootV:
    Config.fromfile(ROOT / ablation.CONFIG)  # registers ScanAblation
    return MODELS.build(dict(type='grootv.ScanAblation', arch=ARCH, **options)).eval()


def test_unchanged_network_is_grootv():
    found = network(path='tree', roots='all')
    expected = GrootV(ARCH).eval()
    expected.load_state_dict(found.state_dict())
    image = torch.randn(2, 3, 48, 64)
    assert torch.equal(found(image)[0], expected(image)[0])


@pytest.mark.parametrize('name', ablation.VARIANTS)
def test_every_variant_trains_every_parameter(name):
    model = network(**ablation.VARIANTS[name][0]).train()
    model(torch.randn(2, 3, 48, 64))[0].sum().backward()
    unused = {'A_log'} if name == 'no scan' else set()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None or parameter_name.split('.')[-1] in unused, parameter_name


@pytest.mark.parametrize(
    ('roots', 'sources'),
    [
        ('all', lambda i: range(5)),
        ('none', lambda i: [i]),
        ('last', lambda i: range(i + 1)),
        ('first', lambda i: range(i, 5)),
    ],
)
def test_states_along_a_raster_scan_aggregate_their_sources(roots, sources):
    ssm = network(path='raster', roots=roots).stages[0].blocks[0].ssm
    guide = torch.rand(1, 1, 5, ssm.D.numel()).repeat(6, 1, 1, 1)
    guide[range(5), 0, range(5)] *= 2  # each item but the last has another vertex
    states, _, _ = ssm.scan(guide, ssm.build_tree(guide))
    for vertex, moved in enumerate((states[:5] != states[5]).any(-1).tolist()):
        assert moved == [vertex in sources(i) for i in range(5)]
