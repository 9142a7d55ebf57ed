"""What the benchmarks conclude from their figures: exponents, targets and tables."""

import json

import pytest

from grootv.errors import UserError
from tests.tools.tiny_run import load_tool, run_tool

benchmark_scaling = load_tool('benchmarks/benchmark_scaling.py')

import render_tables  # noqa: E402  (the script puts its folder on the path)
from measuring.attribution import PARTS  # noqa: E402
from measuring.model_targets import judge  # noqa: E402

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


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (None, 'does not exist'),
        ('{', 'is not JSON'),
        ('{"kind": "ops"}', 'it needs a kind, model or scaling or tokens'),
    ],
)
def test_a_file_without_tables(tmp_path, text, sentence):
    path = tmp_path / 'found.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        render_tables.write(path)
