"""The benchmarks of networks and layers: what they count, what they compare, what they say."""

import json
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch

from grootv import ops
from grootv.models.layers import TreeSSM
from grootv.models.layers import mlp as mlp_module
from grootv.utils.errors import UserError
from tests.tools.tiny_run import load_tool, run_tool, write_config, write_detection, write_segmentation

benchmark_model = load_tool('benchmarks/benchmark_model.py')
benchmark_scaling = load_tool('benchmarks/benchmark_scaling.py')

import render_tables  # noqa: E402  (the scripts put their folder on the path)
from measuring import clock, deployed, models, peak_memory  # noqa: E402
from measuring.attribution import PARTS, TREE, time_shares  # noqa: E402
from measuring.mixers import MixerRuns, operator_calls, path  # noqa: E402
from measuring.model_targets import judge  # noqa: E402

ROOT = Path(__file__).parents[2]
SMALL = models.Setting('cpu', 32)
PICO = models.Network('arch', 'pico')


# The clock


def test_calls_take_turns_and_prepare_is_not_timed():
    order = []

    def prepare(index: int) -> None:
        order.append(f'prepare {index}')
        time.sleep(0.02)

    calls = {'one': lambda k: order.append(f'one {k}'), 'two': lambda k: order.append(f'two {k}')}
    samples = clock.take_turns(calls, 'cpu', 0, least=3, most=3, sets=2, warm_ups=0, prepare={'two': prepare})
    assert order[3:] == ['one 0', 'prepare 0', 'two 0', 'one 1', 'prepare 1', 'two 1', *order[3:6]]
    assert {name: len(seconds) for name, seconds in samples.items()} == {'one': 3, 'two': 3}
    assert min(samples['two']) < 0.02


@pytest.mark.parametrize(('budget', 'least', 'most', 'rounds'), [(0, 4, 9, 4), (60, 4, 9, 9)])
def test_rounds_keep_within_their_limits(budget, least, most, rounds):
    samples = clock.take_turns({'sleep': lambda _: time.sleep(1e-3)}, 'cpu', budget, least, most)
    assert len(samples['sleep']) == rounds


def test_a_machine_that_slows_down_changes_no_ratio():
    theirs = [1.0, 1.5, 2.0, 4.0, 8.0]
    assert clock.beside([3 * each for each in theirs], theirs) == {'ratio': 3, 'low': 3, 'high': 3}


def test_percentile_of_few_and_of_many_calls():
    assert clock.percentile95([3.0, 1.0, 2.0]) == 3
    assert clock.percentile95([float(k) for k in range(101)]) == 95


# Peak memory


CALL = """
import sys, torch
sys.path.insert(0, 'tools/benchmarks')
from measuring import peak_memory

def call():
    first = torch.ones(2**23)  # 32 MiB
    second = first + 1
    del first
    second.add_(1)

print(peak_memory.measure(call, 'cpu', peak_memory.held_now('cpu')))
"""


def test_peak_memory_counts_what_a_call_holds_at_once():
    environment = os.environ | peak_memory.GIVE_BACK
    found = subprocess.check_output([sys.executable, '-c', CALL], cwd=ROOT, env=environment, text=True)
    assert abs(int(found) - 2**26) < 2**22


def test_a_child_counts_weights_gradients_and_moments():
    weights = 4 * sum(parameter.numel() for parameter in models.build(PICO, SMALL).parameters())
    common = dict(network=vars(PICO), setting=dict(size=32), batch=2, dtype='float32')
    found = peak_memory.peak_memory('network', 'cpu', 1, mode='step', **common)
    assert 4 * weights < found < 12 * weights


def test_a_child_that_fails_says_why():
    with pytest.raises(peak_memory.NotMeasured, match="KeyError: 'convolution'"):
        peak_memory.peak_memory('convolution', 'cpu', 1)


# Networks and layers


def test_arch_is_the_published_classifier():
    model = models.build(models.Network('arch', 'tiny', 'stage'), SMALL)
    assert sum(parameter.numel() for parameter in model.parameters()) == 29_958_600
    assert [module.share_tree for module in model.modules() if hasattr(module, 'share_tree')] == [True] * 4


@pytest.mark.parametrize('write', [write_config, write_detection, write_segmentation])
def test_a_config_is_run_as_it_is_but_for_drop_path(tmp_path, write):
    config = write(tmp_path, tmp_path / 'no_data_needed')
    model = models.build(models.Network('config', str(config), 'stage'), SMALL)
    runs = models.Runs(model, models.Setting('cpu', 64), 2, 'float32')
    for mode in models.MODES:
        call, prepare = runs.call(mode)
        if prepare:
            prepare(0)
        call(0)
        assert runs.finite()
    backbone = model.backbone
    assert [stage.share_tree for stage in backbone.stages] == [True] * 4
    assert not any(block.drop_path.drop_prob for stage in backbone.stages for block in stage.blocks)


def test_results_that_are_no_numbers_are_noticed():
    runs = models.Runs(models.build(PICO, SMALL), SMALL, 2, 'bfloat16')
    runs.forward(0)
    assert runs.result.dtype == torch.bfloat16
    assert runs.finite()
    runs.images[1][0, 0, 0, 0] = torch.nan
    runs.forward(1)
    assert not runs.finite()
    runs.step(0)
    runs.forward(0)
    assert runs.finite()
    next(runs.model.parameters()).grad[0] = torch.inf
    assert not runs.finite()


def test_the_raster_is_a_recurrence_in_both_directions():
    u, a = torch.randn(1, 7, 3), torch.rand(1, 7, 3)
    expected = torch.zeros_like(u)
    for i in range(7):
        for j in range(7):
            expected[0, i] += a[0, min(i, j) + 1 : max(i, j) + 1].prod(0) * u[0, j]
    torch.testing.assert_close(ops.tree_scan(u, a, path(7)), expected)


def test_operators_of_a_layer_are_called_alone():
    names = {name: list(operator_calls(MixerRuns('cpu', name, 8, 4))) for name in benchmark_scaling.MIXERS}
    assert names == {
        'tree scan': ['build_tree', 'selective_tree_scan', 'gated_read_out'],
        'raster scan': ['selective_tree_scan', 'gated_read_out'],
        'attention': [],
    }


# Where the time goes


@pytest.fixture
def runs() -> models.Runs:
    return models.Runs(models.build(PICO, SMALL), SMALL, 2, 'float32')


@pytest.mark.parametrize('backward', [False, True])
def test_parts_sum_up_to_the_whole(runs, backward):
    shares = time_shares(runs, backward, calls=1)
    assert tuple(shares['parts']) == PARTS
    assert sum(shares['parts'].values()) == pytest.approx(shares['seconds'])
    assert all(seconds >= 0 for seconds in shares['parts'].values())
    absent = {part for part, seconds in shares['parts'].items() if not seconds}
    only_forward, only_backward = {*TREE}, {'loss', 'parameter gradients'}
    assert only_backward <= absent if not backward else only_forward <= absent
    assert absent <= only_forward | only_backward | {'copies'}


@pytest.mark.parametrize('backward', [False, True])
def test_a_slow_part_is_found(runs, backward, monkeypatch):
    slow = torch.randn(400, 400)

    def gelu(x: torch.Tensor, approximate: str = 'none') -> torch.Tensor:
        y = slow * x.mean()
        for _ in range(20):
            y = slow @ y * 1e-3
        return x * (1 + y.mean())

    monkeypatch.setattr(mlp_module.F, 'gelu', gelu)
    parts = time_shares(runs, backward, calls=3)['parts']
    slowed = parts['MLP'] + parts['stem'] + parts['head']  # all that have a GELU
    assert slowed > 0.7 * sum(parts.values())
    assert parts['MLP'] == max(parts.values())


def test_slow_trees_are_found(runs, monkeypatch):
    build = TreeSSM.build_tree

    def slow_build(self, guide):
        for _ in range(10):
            build(self, guide.expand(1000, -1, -1, -1))
        return build(self, guide)

    runs.images = [image[:1] for image in runs.images]
    monkeypatch.setattr(TreeSSM, 'build_tree', slow_build)
    parts = time_shares(runs, calls=3)['parts']
    assert sum(parts[step] for step in TREE) > 0.6 * sum(parts.values())


# Growth


def test_exponent_is_the_slope_between_logarithms():
    assert benchmark_scaling.exponent([(x, 3 * x**1.7) for x in (9, 50, 400)]) == pytest.approx(1.7)


def test_growth_is_judged_between_56_and_512():
    def row(side: int, mode: str, seconds: float) -> dict:
        common = dict(name='tree scan', mode=mode, side=side, vertices=side**2)
        return dict(**common, median_s=seconds, bytes=None, not_measured=None)

    sides = (14, 56, 128, 512, 1024)
    rows = [row(side, 'forward', side**2 if 56 <= side <= 512 else 1e9) for side in sides]
    rows += [row(side, 'training', side**2.2) for side in sides]
    found = dict(rows=rows, exponents=benchmark_scaling.exponents(rows), quick=False)
    report = benchmark_scaling.judge(found)
    growth = {figure.name: figure for figure in report.figures if figure.limit}
    assert [fit['sides'] for fit in found['exponents']] == [[56, 128, 512]] * 2
    assert growth['tree scan, forward, exponent of time'].value == pytest.approx(1)
    assert growth['tree scan, forward, exponent of time'].holds
    assert growth['tree scan, training, exponent of time'].value == pytest.approx(1.1)
    assert growth['tree scan, training, exponent of time'].holds is False


@pytest.mark.parametrize(
    ('seconds', 'expected'),
    [([1.0], 16), ([1.0, 64.0], 64**2), ([1.0, 2.0], 2 * 16), ([1.0, 512.0], 512 * 16**2)],
)
def test_what_a_larger_map_will_take(seconds, expected):
    rows = [dict(vertices=16**k, median_s=each) for k, each in enumerate(seconds)]
    vertices = 16 ** len(seconds)
    assert benchmark_scaling.expected(rows, 'median_s', vertices) == pytest.approx(expected)
    assert benchmark_scaling.expected([], 'median_s', vertices) == 0


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


# Targets and tables

SWIN = 'swin_tiny_patch4_window7_224'


def model_row(network='grootv_tiny', tree_per='block', dtype='float32', mode='forward', batch=8, **beside):
    """A row of the JSON that took one second; its ratios by name."""
    quartiles = {other.replace('swin', SWIN): dict(ratio=x, low=x, high=x) for other, x in beside.items()}
    return dict(
        **dict(network=network, tree_per=tree_per, dtype=dtype, how='eager', mode=mode, batch=batch),
        **dict(input_size=224, rounds=20, median_s=1.0, p95_s=1.1, images_per_s=8.0, finite=True),
        beside=quartiles,
    )


def model_json(**changes) -> dict:
    parts = dict.fromkeys(PARTS, 0.0) | {'MLP': 0.5, 'scan': 0.1, 'tree': 0.05}
    profile = dict(network='grootv_tiny', mode='forward', batch=8, input_size=224, parts=parts)
    memory = model_row(mode='step') | dict(bytes=2**30, not_measured=None, beside={SWIN: 1.1})
    return (
        dict(
            **dict(kind='model', quick=False, device=dict(name='cpu'), bfloat16_hardware=True, beside=SWIN),
            **dict(
                processor='a chip', threads=2, commit='abc', date='2020-01-02', command='benchmark_model.py'
            ),
            **dict(versions=dict(torch='2.13'), parameters={'grootv_tiny': 29_958_600, SWIN: 28_288_354}),
            rows=[
                model_row(swin=1.2),
                model_row(mode='step', swin=1.2),
                model_row(tree_per='stage', block=0.95),
                model_row(tree_per='stage', mode='step', block=1.01),
                model_row(dtype='bfloat16', float32=0.8),
                model_row(network=SWIN, tree_per=None),
            ],
            memory=[memory],
            profiles=[profile | dict(seconds=1.1, unprofiled_seconds=1.0)],
            targets=[],
        )
        | changes
    )


def test_targets_of_grootv_t_beside_swin():
    figures = {figure.name: figure for figure in judge(model_json()).figures}
    held = {name: figure.holds for name, figure in figures.items()}
    assert held == {
        f'forward, batch 1, time beside {SWIN}': None,
        f'forward, batch 8, time beside {SWIN}': False,
        f'step, batch 8, time beside {SWIN}': True,
        f'step, batch 8, peak memory beside {SWIN}': True,
        'tree and scan in the forward pass, batch 8': False,
        'tree per stage beside tree per block, where trees dominate': None,
        'tree per stage beside tree per block, everywhere': False,
        'bfloat16 autocast, time beside float32': True,
        'bfloat16 autocast, results with NaN or infinity': True,
    }
    assert figures[f'forward, batch 1, time beside {SWIN}'].not_measured == 'not part of this run'
    assert figures['tree and scan in the forward pass, batch 8'].value == pytest.approx(15)
    assert 'step, batch 8, float32' in figures['tree per stage beside tree per block, everywhere'].note


def test_other_networks_have_no_target_beside_their_peers():
    found = model_json()
    found['parameters'] = {'grootv_small': 51_331_624}
    found['rows'] = [row | dict(network='grootv_small') for row in found['rows']]
    figure = judge(found).figures[1]
    assert figure.value == 1.2
    assert figure.limit is figure.holds is None


def test_nan_is_a_missed_target():
    found = model_json(rows=[model_row(dtype='bfloat16', float32=0.8) | dict(finite=False)])
    figure = judge(found).figures[-1]
    assert figure.value == 1
    assert figure.holds is False


def test_without_bfloat16_arithmetic_its_speed_is_not_judged():
    figures = judge(model_json(bfloat16_hardware=False)).figures
    (figure,) = [figure for figure in figures if figure.name.startswith('bfloat16 autocast, time')]
    assert figure.not_measured == 'the processor has no bfloat16 arithmetic'


def test_a_page_holds_the_figures_of_its_json(tmp_path):
    found = model_json()
    found['targets'] = [vars(figure) for figure in judge(found).figures]
    source = tmp_path / 'model.json'
    source.write_text(json.dumps(found))
    assert run_tool('benchmarks/render_tables.py', source) == 0
    page = (tmp_path / 'model.md').read_text()
    for line in (
        'Measured on a chip,\n2 threads, torch 2.13, commit abc, 2020-01-02, by\n`python',
        f'| forward, batch 8, time beside {SWIN} | 1.2 times | 1.1 | missed by 9 % |',
        f'| step, batch 8, time beside {SWIN} | 1.2 times | 1.25 | met |',
        f'| forward, batch 1, time beside {SWIN} | not measured | 1 |  | not part of this run |',
        f'| network | type | ms | 95 % below | images/s | / {SWIN} | / block | / float32 |',
        '| grootv_tiny, tree per block | float32 | 1000.0 | 1100.0 | 8.0 | 1.20 |  |  |',
        '| grootv_tiny, tree per block | float32 | 1024 | 1.10 |',
        '| MLP | 45.5 |',
        '![](model.png)',
    ):
        assert line in page
    assert (tmp_path / 'model.png').exists()


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
    for tool in ('benchmark_model.py', 'benchmark_scaling.py'):
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


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (None, 'does not exist'),
        ('{', 'is not JSON'),
        ('{"kind": "ops"}', 'it needs a kind, model or scaling'),
    ],
)
def test_a_file_without_tables(tmp_path, text, sentence):
    path = tmp_path / 'found.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        render_tables.write(path)
