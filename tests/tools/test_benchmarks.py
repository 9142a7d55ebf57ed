"""The benchmarks of networks and layers, from beginning to end: what they compare and what they say."""

import json
import subprocess
from itertools import count

import pytest
import torch

from grootv.errors import UserError
from tests.tools.tiny_run import load_tool, run_tool

benchmark_model = load_tool('benchmarks/benchmark_model.py')
benchmark_scaling = load_tool('benchmarks/benchmark_scaling.py')
benchmark_tokens = load_tool('benchmarks/benchmark_tokens.py')

from gpu_checks.environment import commit  # noqa: E402  (the scripts put their folder on the path)
from measuring import deployed, models  # noqa: E402

SMALL = models.Setting('cpu', 32)
PICO = models.Network('arch', 'pico')


# Runs from beginning to end


@pytest.fixture
def instant_memory(monkeypatch):
    """Figures in place of those of child processes."""
    sizes = count(2**20, 2**20)
    for tool in (benchmark_model, benchmark_scaling):
        monkeypatch.setattr(tool, 'peak_memory', lambda *_, **__: next(sizes))


def test_networks(tmp_path, instant_memory, monkeypatch, capsys):
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    out = tmp_path / 'new' / 'model.json'
    arguments = ['--arch', 'pico', '--peers', 'test_convnext', '--batch', '2', '--input-size', '32']
    benchmark_model.main([*arguments, '--quick', '--profile', '--out', str(out)])
    found = json.loads(out.read_text())
    assert found['environment']['OMP_NUM_THREADS'] == '7'
    assert found['processor']
    assert found['commit']
    assert found['threads'] == torch.get_num_threads()
    rows = [row for row in found['rows'] if row['network'] != 'grootv_narrow']
    ways = {(row['network'], row['tree_per'], row['dtype'], row['mode']) for row in rows}
    names = [('grootv_pico', 'block'), ('grootv_pico', 'stage'), ('test_convnext', None)]
    assert ways == {
        (*name, dtype, mode) for name in names for dtype in models.DTYPES for mode in models.MODES
    }
    assert all(row['finite'] and 0 < row['median_s'] <= row['p95_s'] for row in rows)
    for row in rows:
        beside = {'test_convnext'} if row['tree_per'] else set()
        beside |= {'block'} if row['tree_per'] == 'stage' else set()
        beside |= {'float32'} if row['dtype'] == 'bfloat16' else set()
        assert set(row['beside']) == beside
    assert len(found['memory']) == 2 * 6  # backward has none of its own
    assert [(p['network'], p['mode']) for p in found['profiles']] == [
        *(('grootv_narrow', 'forward'), ('grootv_pico', 'forward'), ('grootv_pico', 'backward'))
    ]
    assert all(target['holds'] is None for target in found['targets'] if not target['required'])
    page = out.with_suffix('.md').read_text()
    assert 'A quick run' in page
    assert '| grootv_pico, tree per stage | bfloat16 |' in page
    assert out.with_suffix('.png').stat().st_size > 10_000
    assert 'tree per stage beside tree per block, where trees dominate' in capsys.readouterr().out


def test_compiled_networks_stand_beside_eager_ones(monkeypatch, instant_memory, capsys):
    monkeypatch.setattr(torch, 'compile', lambda model, dynamic: model)  # a compiler takes minutes
    arguments = ['--arch', 'pico', '--peers', '--batch', '2', '--input-size', '32', '--dtype', 'float32']
    benchmark_model.main([*arguments, '--tree-per', 'block', '--modes', 'forward', '--compile', '--quick'])
    printed = capsys.readouterr().out
    assert 'grootv_pico, tree per block, torch.compile' in printed
    assert 'torch.compile, time beside eager' in printed


def test_deployed_networks_stand_beside_eager_ones(instant_memory, capsys):
    arguments = ['--arch', 'pico', '--peers', '--batch', '2', '--input-size', '32', '--dtype', 'float32']
    arguments += ['--tree-per', 'block', '--modes', 'forward', '--quick']
    benchmark_model.main([*arguments, '--deploy', 'export', 'onnx'])  # a package takes a minute to compile
    printed = capsys.readouterr().out
    for how in ('torch.export', 'ONNX Runtime'):
        assert f'grootv_pico, tree per block, {how}' in printed
        assert f'{how}, time beside eager' in printed


@pytest.mark.parametrize('kind', ['export', 'onnx'])
def test_a_deployed_network_gives_the_same_logits(kind, tmp_path):
    model = models.build(PICO, SMALL).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        found = deployed.deployed(kind, model, 32, tmp_path)(images)
        torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


def test_layers(tmp_path, instant_memory):
    out = tmp_path / 'scaling.json'
    benchmark_scaling.main(['--sides', '8', '4', '--channels', '8', '--quick', '--out', str(out)])
    found = json.loads(out.read_text())
    sides = [(row['mode'], row['side']) for row in found['rows'] if row['name'] == 'attention']
    assert sides == [('forward', 4), ('forward', 8), ('training', 4), ('training', 8)]
    assert all(row['median_s'] > 0 for row in found['rows'])
    names = {row['name'] for row in found['rows']} - set(benchmark_scaling.MIXERS)
    assert names == {
        *(f'tree scan: {name}' for name in ('build_tree', 'selective_tree_scan', 'gated_read_out')),
        *(f'raster scan: {name}' for name in ('selective_tree_scan', 'gated_read_out')),
    }
    assert '4 x 4 | 8 x 8 | exponent' in out.with_suffix('.md').read_text()
    assert out.with_suffix('.png').exists()


def test_what_takes_too_long_is_left_out(instant_memory, capsys):
    arguments = ['--sides', '4', '8', '12', '--channels', '8', '--modes', 'forward', '--quick']
    benchmark_scaling.main([*arguments, '--limit', '0'])
    printed = capsys.readouterr().out
    assert printed.count('about 0 s a call expected at 8 x 8') == 2 * len(benchmark_scaling.MIXERS)


def test_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_tokens, 'CHANNELS', 8)
    monkeypatch.setattr(benchmark_tokens, 'WIDTH', 8)
    out = tmp_path / 'tokens.json'
    benchmark_tokens.main(['--lengths', '4', '9', '--quick', '--out', str(out)])
    found = json.loads(out.read_text())
    assert len(found['rows']) == 2 * 2 * 6
    assert all(0 < row['median_s'] <= row['p95_s'] for row in found['rows'])
    assert [target['limit'] for target in found['targets']] == [1.5, 2.5] * 2
    assert '| us a token | 4 | 9 |' in out.with_suffix('.md').read_text()
    assert out.with_suffix('.png').exists()


def test_the_worst_length_is_judged():
    seconds = {'chain scan': (1, 2), 'tree': (0.5, 1), 'tree scan': (0.5, 4)}
    rows = [
        dict(name=name, mode='forward', length=length, median_s=some[index])
        for name, some in seconds.items()
        for index, length in enumerate((100, 200))
    ]
    flat, beside = benchmark_tokens.judge(dict(rows=rows, quick=False)).figures
    assert flat.name == 'tree and tree scan, forward, time per token at 200 beside 100 tokens'
    assert (flat.value, flat.holds) == (2.5, False)
    assert (beside.value, beside.holds, beside.note) == (2.5, True, 'worst of 2: 200 tokens')


# What the user can mend


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['some.py', '--arch', 'tiny'], 'either a config or --arch, not both'),
        (['some.py'], 'config some.py does not exist'),
        (
            ['--peers', 'convnext_tinny'],
            '--peers convnext_tinny: timm has no such model, did you mean convnext_tiny?',
        ),
        (['--out', 'model.md'], '--out takes a file that ends in .json, got model.md'),
        (['--device', 'cuda'], 'sees no CUDA device'),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    arguments = ['--arch', 'pico'] * (arguments[0] != 'some.py') + ['--input-size', '32', *arguments]
    assert run_tool('benchmarks/benchmark_model.py', *arguments) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert sentence in printed[0]


def test_bad_numbers_are_told_as_usage(capsys):
    for tool in ('benchmark_model.py', 'benchmark_scaling.py', 'benchmark_tokens.py'):
        assert run_tool(f'benchmarks/{tool}', '--threads', '0') == 2
        assert 'argument --threads: must be 1 or more, got 0' in capsys.readouterr().err


def test_a_peer_that_does_not_take_the_size():
    network = models.Network('timm', 'maxvit_tiny_rw_224')
    with pytest.raises(UserError, match=r'--peers maxvit_tiny_rw_224: it takes no images of 50 px \('):
        benchmark_model.usable(network, models.Setting('cpu', 50))


def test_a_config_that_is_not_measured(tmp_path):
    config = tmp_path / 'model.py'
    config.write_text("model = dict(type='DINO', backbone=dict(type='ResNet'))")
    with pytest.raises(UserError, match=r'model.py builds DINO: this tool measures ImageClassifier, '):
        models.build(models.Network('config', str(config)), SMALL)
    config.write_text("model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18))")
    with pytest.raises(
        UserError, match=r'--tree-per: the backbone of .*model.py is ResNet, not grootv.GrootV'
    ):
        models.build(models.Network('config', str(config), 'block'), SMALL)
    config.write_text('schedule = 3')
    with pytest.raises(UserError, match=r'model.py has no model'):
        models.build(models.Network('config', str(config)), SMALL)


def test_results_of_earlier_runs_do_not_count_as_changes(tmp_path):
    def git(*arguments):
        identity = '-c', 'user.name=a', '-c', 'user.email=a@b'
        subprocess.run(['git', '-C', tmp_path, *identity, *arguments], check=True, capture_output=True)

    result, source = tmp_path / 'experiments/results/ops.json', tmp_path / 'setup.py'
    result.parent.mkdir(parents=True)
    result.touch()
    source.touch()
    git('init')
    git('add', '.')
    git('commit', '-m', 'first')
    result.write_text('{}')
    clean = commit(tmp_path)
    source.write_text('pass')
    assert len(clean) >= 7
    assert commit(tmp_path) == f'{clean}-dirty'
