import json
import subprocess
import sys
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
    torch.manual_seed(0)
    return MODELS.build(dict(type='grootv.ScanAblation', arch=ARCH, **options)).eval()


def test_unchanged_network_is_grootv():
    found = network(path='tree', roots='all')
    torch.manual_seed(0)
    expected = GrootV(ARCH).eval()
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())
    for parameter in found.parameters():  # at first many are 0 or 1
        torch.nn.init.normal_(parameter, std=0.3)
    expected.load_state_dict(found.state_dict())
    image = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    torch.testing.assert_close(found.double()(image)[0], expected.double()(image)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ablation.VARIANTS)
def test_every_variant_trains_every_parameter(name):
    model = network(**ablation.VARIANTS[name][0]).train()
    model(torch.randn(2, 3, 48, 64))[0].sum().backward()
    unused = {'A_log'} if name == 'no scan' else set()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None or parameter_name.split('.')[-1] in unused, parameter_name


@pytest.mark.parametrize(
    ('roots', 'sources'),
    [('all', [range(5)] * 5), ('none', [[i] for i in range(5)]), ('last', [range(i + 1) for i in range(5)])],
)
def test_states_along_a_raster_scan_aggregate_their_sources(roots, sources):
    ssm = network(path='raster', roots=roots).stages[0].blocks[0].ssm
    guide = torch.rand(1, 1, 5, ssm.D.numel())
    tree, vertices = ssm.build_tree(guide), guide.flatten(1, 2)
    before, _ = ssm.states(vertices, tree)
    for vertex in range(5):
        other = vertices.clone()
        other[0, vertex] *= 2
        moved = (ssm.states(other, tree)[0] != before).any(-1)[0].tolist()
        assert moved == [vertex in those for those in sources]


def test_training_tool_finds_the_network():
    command = [sys.executable, 'tools/train.py', ablation.CONFIG, '--cfg-options']
    options = 'train_dataloader.dataset.data_root=nowhere'
    result = subprocess.run([*command, options], cwd=ROOT, capture_output=True, text=True)
    assert 'data folder nowhere does not exist' in result.stderr


def test_finished_runs_are_kept_and_a_failed_one_is_named(monkeypatch, tmp_path):
    started = []

    def train(command, cwd, env, stdout, stderr):
        started.append(command[-1] if 'roots' in command[-1] else 'plain')
        log = tmp_path / command[command.index('--work-dir') + 1] / '20300101/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(
            '\n'.join(json.dumps({'accuracy/top1': top, 'step': i}) for i, top in ((1, 50), (2, 96.5)))
        )
        stdout.write('train.py: the disk is full\n')
        return SimpleNamespace(returncode=len(started) == 2)

    (tmp_path / 'data/digits').mkdir(parents=True)
    monkeypatch.setattr(ablation, 'ROOT', tmp_path)
    monkeypatch.setattr(ablation.subprocess, 'run', train)
    monkeypatch.setattr(measure, 'commit', lambda: 'abc')
    variants = ['--variants', 'cosine tree, all roots', 'first root only']
    with pytest.raises(ablation.UserError, match=r"'first root only', seed 0, failed.*the disk is full"):
        ablation.main(['--seeds', '1', *variants])
    (tmp_path / 'work_dirs/ablation/first-root-only/seed-0/20300101/vis_data/scalars.json').unlink()
    (tmp_path / 'work_dirs/ablation/first-root-only/seed-0/20300101/vis_data').rmdir()
    (tmp_path / 'work_dirs/ablation/first-root-only/seed-0/20300101').rmdir()
    ablation.main(['--seeds', '1', *variants])
    assert started == ['plain', 'model.backbone.roots=first', 'model.backbone.roots=first']
    _, rows = measure.read(tmp_path / 'work_dirs/ablation/ablation.jsonl')
    assert [row['accuracy'] for row in rows] == [[50, 96.5]] * 2
    assert '| first root only' in (tmp_path / 'work_dirs/ablation/README.md').read_text()
