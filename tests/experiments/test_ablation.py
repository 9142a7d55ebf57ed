from types import SimpleNamespace

import ablation
import measure
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
    guide = torch.rand(1, 1, 5, ssm.D.numel())
    tree = ssm.build_tree(guide)
    before, _, _ = ssm.scan(guide, tree)
    for vertex in range(5):
        other = guide.clone()
        other[0, 0, vertex] *= 2
        moved = (ssm.scan(other, tree)[0] != before).any(-1)[0].tolist()
        assert moved == [vertex in sources(i) for i in range(5)]


def test_finished_runs_are_kept_and_a_failed_one_is_named(monkeypatch, tmp_path):
    started = []

    def train(command, stdout, **_):
        started.append(command[-1])
        log = tmp_path / command[command.index('--work-dir') + 1] / '20300101/vis_data/scalars.json'
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text('{"accuracy/top1": 50, "step": 1}\n{"accuracy/top1": 96.5, "step": 2}\n{"step": 3}')
        stdout.write('train.py: the disk is full\n')
        return SimpleNamespace(returncode=len(started) == 2)

    (tmp_path / 'data/digits').mkdir(parents=True)
    monkeypatch.setattr(ablation, 'ROOT', tmp_path)
    monkeypatch.setattr(ablation.subprocess, 'run', train)
    monkeypatch.setattr(measure, 'commit', lambda: 'abc')
    arguments = ['--seeds', '1', '--variants', 'cosine tree, all roots', 'first root only']
    with pytest.raises(ablation.UserError, match=r"'first root only', seed 0, failed.*the disk is full"):
        ablation.main(arguments)
    ablation.main(arguments)
    assert started == ['randomness.seed=0', *['model.backbone.roots=first'] * 2]
    _, rows = measure.read(tmp_path / 'work_dirs/ablation/ablation.jsonl')
    assert [row['accuracy'] for row in rows] == [[50, 96.5]] * 2
    assert '| first root only' in (tmp_path / 'work_dirs/ablation/README.md').read_text()
