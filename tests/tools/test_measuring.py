"""What the benchmarks measure with: the clock, memory, networks and layers, and shares of the time."""

import os
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from grootv import ops
from grootv.models.layers import TreeSSM
from tests.tools.tiny_run import ROOT, load_tool, write_config, write_detection, write_segmentation

load_tool('benchmarks/benchmark_model.py')  # puts its folder on the path

from measuring import clock, models, peak_memory  # noqa: E402
from measuring.attribution import PARTS, TREE, time_shares  # noqa: E402
from measuring.mixers import MIXERS, MixerRuns, operator_calls, path  # noqa: E402

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
    names = {name: list(operator_calls(MixerRuns('cpu', name, 8, 4))) for name in MIXERS}
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

    monkeypatch.setattr(F, 'gelu', gelu)
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
