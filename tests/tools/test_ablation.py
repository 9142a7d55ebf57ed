import argparse
import copy
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from grootv import cli
from grootv.errors import UserError
from grootv.models import GrootV
from grootv.visualization.blocks import recorded, scans
from grootv.visualization.topology import raster_tree, share_changed
from tests.tools.tiny_run import ROOT, load_tool, losses, run_tool, write_config, write_images

CONFIG = 'tools/ablation/digits.py'
ARCH = dict(embed_dims=8, depths=[1, 2, 1, 1])
run = load_tool('ablation/run.py')


@pytest.fixture(autouse=True)
def _tools_are_found(monkeypatch):
    """As for tools/train.py, which lies beside the package."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))


def network(**options) -> GrootV:
    Config.fromfile(ROOT / CONFIG)  # registers ScanAblation
    torch.manual_seed(0)
    return MODELS.build(dict(type='grootv.ScanAblation', arch=ARCH, **options)).eval()


def image(size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('options', [{}, dict(metric='manhattan', tree_per='stage')])
def test_without_changes_it_is_the_product(options):
    found = network(path='tree', roots='all', **options)
    torch.manual_seed(0)
    expected = GrootV(ARCH, **options).eval()
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())
    found, expected = found.double(), expected.double()
    for parameter in found.parameters():  # at first many are 0 or 1
        torch.nn.init.normal_(parameter, std=0.3)
    expected.load_state_dict(found.state_dict())
    torch.testing.assert_close(
        found(image().double())[0], expected(image().double())[0], rtol=1e-9, atol=1e-9
    )


def heard(roots: str, path: str, shape: tuple[int, int] = (1, 5)) -> list[list[int]]:
    """For every vertex of a map, the vertices whose guide moves its state."""
    ssm = scans(network(path=path, roots=roots))[0, 0]
    count, width = shape[0] * shape[1], ssm.D.numel()
    guide = torch.rand(1, *shape, width, generator=torch.Generator().manual_seed(0))
    tree, vertices = ssm.build_tree(guide), guide.flatten(1, 2)
    before, _ = ssm.states(vertices, tree)
    moved = [[] for _ in range(count)]
    for vertex in range(count):
        other = vertices.clone()
        other[0, vertex] *= 2
        after, _ = ssm.states(other, tree)
        for listener in (after != before).any(-1)[0].nonzero().flatten().tolist():
            moved[listener].append(vertex)
    return moved


def test_who_hears_whom_along_a_raster_scan():
    everyone = list(range(5))
    assert heard('all', 'raster') == [everyone] * 5
    assert heard('none', 'raster') == [[i] for i in everyone]
    assert heard('last', 'raster') == [everyone[: i + 1] for i in everyone]
    assert heard('first', 'raster') == [everyone[i:] for i in everyone]


@torch.no_grad()
def test_paths_are_what_they_are_called():
    def trees(**options):
        torch.manual_seed(3)
        model = network(**options)
        with recorded(model) as found:
            model(image())
        return {place: block.tree for place, block in found.items()}

    plain, last = trees(), trees(roots='last')
    for place in plain:
        assert share_changed(plain[place], last[place]).sum() == 0
        assert (last[place].order[:, 0] == plain[place].order.shape[1] - 1).all()
    row = trees(path='raster')[1, 0]
    assert torch.equal(row.parent, raster_tree(2, 48).parent)
    drawn = trees(path='random')
    assert share_changed(drawn[1, 0], drawn[1, 1]).min() > 0
    assert torch.equal(drawn[1, 0].parent, trees(path='random')[1, 0].parent)  # the same seed


@pytest.mark.parametrize('name', run.VARIANTS)
def test_every_variant_trains_and_can_be_averaged(name):
    model = network(**run.VARIANTS[name][0]).train()
    model(image())[0].sum().backward()
    unused = {'A_log'} if name == 'no scan' else set()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None or parameter_name.split('.')[-1] in unused, parameter_name
    if 'random' not in name:
        average = copy.deepcopy(model.eval())
        assert torch.equal(average(image())[0], model(image())[0])


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match='ScanAblation: path must be one of tree, raster, random'):
        network(path='snake')
    with pytest.raises(ValueError, match='roots must be one of all, first, last, none'):
        network(roots='some')


def test_training_goes_through_the_ordinary_tool(tmp_path):
    config = write_config(tmp_path, write_images(tmp_path / 'images'), '../tools/ablation/digits.py')
    config.write_text(
        config.read_text().replace('backbone=dict(', "backbone=dict(roots='last', path='raster', ")
    )
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'run') == 0
    assert losses(tmp_path / 'run')


def test_the_tool_finds_the_network_by_itself():
    command = [sys.executable, 'tools/train.py', CONFIG, '--cfg-options']
    result = subprocess.run(
        [*command, 'train_dataloader.dataset.data_root=nowhere'], cwd=ROOT, capture_output=True, text=True
    )
    assert 'data folder nowhere does not exist' in result.stderr


def test_options_of_the_runs_fit_the_config():
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=cli.KeyValueAction)
    cfg = cli.load_config(ROOT / CONFIG, parser.parse_args(['--cfg-options', *run.QUICK]).cfg_options)
    assert len(cfg.train_dataloader.dataset.indices) == 288
    load_tool('train.py').check_schedule(cfg)
    init_default_scope('mmpretrain')
    for options, _ in run.VARIANTS.values():
        cfg = cli.load_config(
            ROOT / CONFIG, {f'model.backbone.{key}': value for key, value in options.items()}
        )
        MODELS.build(cfg.model)


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """The commands that would have trained; each leaves a log of two epochs. Its ``fail`` breaks one."""
    calls = SimpleNamespace(options=[], fail=None)

    def train(command, cwd, env, stdout, stderr):
        options = dict(option.split('=', 1) for option in command[command.index('--cfg-options') + 1 :])
        folder = tmp_path / command[command.index('--work-dir') + 1]
        calls.options.append(options)
        if calls.fail == len(calls.options):
            stdout.write('train.py: the disk is full\n')
            return SimpleNamespace(returncode=1)
        log = folder / '20300101/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        top = 95 + int(options['randomness.seed']) + ('model.backbone.roots' in options)
        records = [
            dict(loss=1.0, step=1),
            *({'accuracy/top1': value, 'step': i} for i, value in ((1, 50), (2, top))),
        ]
        log.write_text('\n'.join(map(json.dumps, records)))
        return SimpleNamespace(returncode=0)

    (tmp_path / 'data/digits').mkdir(parents=True)
    monkeypatch.setattr(run, 'ROOT', tmp_path)
    monkeypatch.setattr(run.subprocess, 'run', train)
    return calls


VARIANTS = ('cosine tree, all roots', 'first root only')


def test_table_and_picture_of_all_runs(trainings, tmp_path, capsys):
    out = tmp_path / 'out'
    run.main(['--seeds', '2', '--variants', *VARIANTS, '--out', str(out)])
    assert [options['randomness.seed'] for options in trainings.options] == ['0', '0', '1', '1']
    assert [options.get('model.backbone.roots') for options in trainings.options] == [None, 'first'] * 2
    assert '[4/4] first root only, seed 1 97.0 %' in capsys.readouterr().out
    found = json.loads((out / 'ablation.json').read_text())
    assert found[VARIANTS[1]]['mean'] == 96.5 and found[VARIANTS[1]]['std'] == 0.71
    assert found[VARIANTS[1]]['runs'][0]['accuracy'] == [50, 96]
    table = (out / 'README.md').read_text()
    assert re.search(r'first root only \| 96\.5 ± 0\.7 \| 96\.5 ± 0\.7 \| 96\.0, 97\.0 \| 82\.9', table)
    assert Image.open(out / 'ablation.png').size[0] == 1210

    trainings.options.clear()
    run.main(['--seeds', '3', '--variants', VARIANTS[0], '--out', str(out)])
    assert [options['randomness.seed'] for options in trainings.options] == ['2']  # the others are there


def test_a_failed_training_is_named_and_repeated(trainings, tmp_path):
    trainings.fail = 2
    with pytest.raises(UserError, match=r"training of 'first root only', seed 0, failed.*the disk is full"):
        run.main(['--seeds', '1', '--variants', *VARIANTS])
    trainings.options.clear()
    run.main(['--seeds', '1', '--variants', *VARIANTS])
    assert [options['model.backbone.roots'] for options in trainings.options] == ['first']
    assert (tmp_path / 'work_dirs/ablation/README.md').exists()


def test_quick_runs_are_kept_apart(trainings, tmp_path):
    run.main(['--seeds', '1', '--variants', VARIANTS[0], '--quick'])
    assert trainings.options[0]['train_cfg.max_epochs'] == '3'
    assert not (tmp_path / 'work_dirs/ablation').exists()


def test_bad_requests(trainings, tmp_path):
    with pytest.raises(UserError, match='--seeds must be 1 or more'):
        run.main(['--seeds', '0'])
    (tmp_path / 'data/digits').rmdir()
    with pytest.raises(UserError, match='data/digits does not exist'):
        run.main([])
