import pytest
import torch
import torch.nn.functional as F

from grootv.models.layers.tree_ssm import TreeSSM, inverse_softplus, step_projection
from grootv.ops import build_tree, reference


def layer(channels=6, dtype=torch.float64, **options):
    torch.manual_seed(0)
    ssm = TreeSSM(channels, **options).to(dtype)
    with torch.no_grad():  # away from the initial values, where D, A and the norms change nothing
        for parameter in ssm.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return ssm


def test_decays_are_those_of_the_scan():
    ssm = layer()
    x = torch.randn(1, 2, 12, dtype=torch.float64)
    tree = build_tree(x.unsqueeze(1))
    delta = F.softplus(ssm.dt_proj(ssm.x_proj(x)[..., :1]))
    torch.testing.assert_close(ssm.decay(x, tree), torch.exp(-delta * ssm.A_log.exp().squeeze(1)))


@pytest.mark.parametrize('metric', ['cosine', 'euclidean', 'manhattan'])
def test_edges_count_in_the_decays(metric):
    ssm, published = layer(metric=metric, edge_decay=True), layer(metric=metric)
    published.load_state_dict(ssm.state_dict(), strict=False)
    x = torch.randn(1, 2, 12, dtype=torch.float64)
    first, second = x[0]
    distance = {
        'cosine': 1 - first @ second / (first.norm() * second.norm()),
        'euclidean': (first - second).square().sum(),
        'manhattan': (first - second).abs().sum(),
    }[metric]
    tree = build_tree(x.unsqueeze(1))  # the second vertex below the first
    edge = torch.exp(-F.softplus(ssm.edge_scale) * torch.stack([0 * distance, distance]).unsqueeze(-1))
    torch.testing.assert_close(ssm.decay(x, tree), published.decay(x, tree) * edge)


def test_the_scale_of_the_edges_starts_at_one_a_channel():
    for metric, start in (('cosine', 1), ('euclidean', 1 / 12), ('manhattan', 1 / 12)):
        scale = F.softplus(TreeSSM(6, metric, edge_decay=True).edge_scale)
        torch.testing.assert_close(scale, torch.full((12,), start, dtype=scale.dtype))
    assert 'edge_scale' not in TreeSSM(6).state_dict()


def test_scans_along_the_tree_it_is_given():
    ssm = layer()
    x = torch.randn(1, 6, 6, 6, dtype=torch.float64)
    y, tree = ssm(x)
    assert torch.equal(ssm(x, tree)[0], y)
    other = build_tree(torch.randn(1, 6, 6, 3))
    z, used = ssm(x, other)
    assert used is other and not torch.allclose(y, z)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_scan_and_its_inputs_alone(dtype, monkeypatch):
    ssm, x, scanned = layer(dtype=torch.float32), torch.randn(1, 4, 4, 6), []
    scan = reference.selective_tree_scan
    name = 'grootv.models.layers.tree_ssm.selective_tree_scan'
    monkeypatch.setattr(name, lambda *args: scanned.extend(args) or scan(*args))
    with torch.autocast('cpu', dtype):
        guide, z = ssm.project(x)
        y, _ = ssm(x)
    assert guide.dtype is z.dtype is y.dtype is dtype
    vertices = guide.flatten(1, 2).float()
    delta, rate, write, _ = ssm.scan_inputs(vertices)
    for found, expected in zip(scanned, (vertices, delta, rate, write), strict=False):
        assert torch.equal(found, expected)
    assert {tensor.dtype for tensor in ssm.scan(guide, ssm.build_tree(guide))} == {torch.float32}


def test_step_projection_inverts_softplus():
    step = torch.tensor([1e-4, 1e-2, 1.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(F.softplus(inverse_softplus(step)), step)
    bias = step_projection(4, 1000, shortest=1e-6, longest=1e-1).bias
    assert F.softplus(bias).min() >= 1e-4 * 0.999
