import dataclasses
import time

import curves
import edge_decay
import measure
import numpy as np
import pytest
import torch

from experiments import scans
from grootv.errors import UserError
from grootv.models import GrootV
from grootv.ops import build_tree, tree_edge_distance, tree_scan
from grootv.visualization.blocks import recorded

ARCH = dict(embed_dims=8, depths=[1, 1, 1, 1])


def test_cross_scan_is_four_recurrences():
    signal, decay = torch.randn(1, 6, 2).double(), torch.rand(1, 6, 2).double()
    expected = torch.zeros(2, 3, 2).double()
    u, a = signal.view(2, 3, 2), decay.view(2, 3, 2)
    rows = [(y, x) for y in range(2) for x in range(3)]
    columns = [(y, x) for x in range(3) for y in range(2)]
    for way in (rows, rows[::-1], columns, columns[::-1]):
        h = torch.zeros(2).double()
        for place in way:
            h = a[place] * h + u[place]
            expected[place] += h
    torch.testing.assert_close(scans.cross_scan(signal, decay, 2, 3).view(2, 3, 2), expected)


@pytest.mark.parametrize('name', edge_decay.VARIANTS)
def test_every_variant_trains_every_parameter(name):
    task = dataclasses.replace(edge_decay.TASKS['tracing'], width=8, blocks=1)
    network = edge_decay.Network(task, **edge_decay.VARIANTS[name])
    network(torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)).square().sum().backward()
    unused = {'A_log'} if name.startswith('edge alone') else set()  # of the decays
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.split('.')[-1] in unused:
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_one_tree_of_all_channels_is_the_scan_of_the_network():
    torch.manual_seed(0)
    found = scans.ScanAblation(arch=ARCH, projected=True, edge_decay=True)
    expected = GrootV(ARCH, edge_decay=True)
    expected.load_state_dict(found.state_dict(), strict=False)
    image = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(found.eval()(image), expected.eval()(image))


def test_the_scan_of_a_grid_without_cycles_is_that_of_its_tree():
    x, signal = torch.rand(2, 1, 6, 4).double(), torch.randn(2, 6, 3).double()
    tree = build_tree(x)
    distance = tree_edge_distance(x, tree).unsqueeze(-1)
    expected = tree_scan(signal, torch.exp(-3 * distance).expand_as(signal), tree)
    torch.testing.assert_close(scans.grid_scan(signal, x, torch.tensor(3.0)), expected)


def test_a_tree_with_diagonals_follows_a_falling_line():
    x = torch.tensor([1.0, 0]).repeat(1, 4, 4, 1)
    x[0, range(4), range(4)] = torch.tensor([0.0, 1])
    parent = scans.tree_with_diagonals(x, 'cosine').parent[0].view(4, 4)
    assert parent.diagonal().tolist() == [0, 0, 5, 10]


def test_curves_keep_their_distance_and_only_one_is_marked():
    for number in range(5):
        rng = np.random.default_rng([2, number])
        found = curves.trace(96, 4, rng)
        for i, one in enumerate(found):
            for other in found[:i]:
                assert np.linalg.norm(one[:, None] - other[None], axis=-1).min() > curves.GAP - 2
        picture, labels, distance = curves.tracing_scene(96, (2, number))
        assert picture.shape == (96, 96, 3) and set(np.unique(labels)) == {0, 1, 2}
        assert distance[labels == 0].max() == 0 and distance[labels == 1].max() > curves.FEWEST_POINTS * 96
    again = curves.tracing_scene(96, (2, 4))[0]
    assert np.array_equal(picture, again)


def test_recall_is_counted_by_distance():
    labels = torch.ones(1, 2, 400, dtype=torch.uint8)
    labels[0, 1] = 2
    distance = torch.zeros(1, 2, 400, dtype=torch.int32)
    distance[..., 200:] = edge_decay.BIN
    predicted = labels.clone()
    predicted[0, 0, 300:] = 2
    assert edge_decay.recall_by_distance(predicted, labels, distance) == [1, 0.5]
    task = edge_decay.TASKS['tracing']
    assert edge_decay.score(task, predicted, labels) == 0.75


@pytest.mark.parametrize('name', edge_decay.TASKS)
def test_every_task_from_scenes_to_page(name, tmp_path, monkeypatch, few_stamps):
    task = edge_decay.TASKS[name]
    small = min(task.size, 64 if task.dense else 32)
    sizes = {small: 4, 2 * small: 2} if task.dense else {small: 4}
    small_task = dataclasses.replace(task, size=small, sizes=sizes, blocks=1, width=4)
    monkeypatch.setitem(edge_decay.TASKS, name, small_task)
    work, out = tmp_path / 'work', tmp_path / f'out/{name}.jsonl'
    arguments = [name, '--quick', '--seeds', '1', '--work-dir', str(work), '--out', str(out)]
    edge_decay.main(arguments)
    rows = measure.read(out)[1]
    assert [row['arm'] for row in rows] == list(edge_decay.ARMS)
    counts = {row['arm']: row['parameters'] for row in rows}
    assert (
        counts['tree, edge'] - counts['tree'] == 8
        and counts['cross scan'] == counts['no scan'] == counts['tree']
    )
    page = out.with_suffix('.md').read_text()
    assert 'A quick run' in page and '| random tree, edge' in page and 'agreement' in page
    assert out.with_suffix('.png').exists()
    before = [path.stat().st_mtime_ns for path in sorted(work.rglob('*.json'))]
    edge_decay.main(arguments)  # nothing is repeated
    assert [path.stat().st_mtime_ns for path in sorted(work.rglob('*.json'))] == before


@pytest.mark.parametrize(('enlarge', 'vertices'), [(1, 8 * 12), (2, 16 * 24), (4, 32 * 48)])
def test_vertices_of_an_enlarged_picture_are_smaller(enlarge, vertices):
    task = dataclasses.replace(edge_decay.TASKS['tracing'], width=8, blocks=1, enlarge=enlarge)
    network, picture = edge_decay.Network(task), torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    labels = torch.zeros(1, 32, 48, dtype=torch.uint8)
    labels[:, 8:20, 8:20] = 1
    with recorded(network.eval().backbone) as trees:
        assert network(picture).shape == (1, 3, 32, 48)
    assert [block.tree.parent.shape[1] for block in trees.values()] == [vertices]
    assert 0 < edge_decay.edges(network, picture, labels)['share_inside'][0] < 1


def test_enlarging_divides_the_stride(tmp_path):
    with pytest.raises(UserError, match='--enlarge must divide 4, the stride of the network, got 3'):
        edge_decay.main(['tracing', '--enlarge', '3', '--work-dir', str(tmp_path)])


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(edge_alone=True), 'edge_alone and start need edge_decay'),
        (dict(path='cross', edge_decay=True), "path 'cross' and roots 'none' read no edge_decay"),
        (dict(path='cross', roots='last'), "path 'cross' needs roots 'all'"),
        (dict(path='grid', edge_decay=True), "path 'grid' needs edge_alone"),
        (dict(path='circle'), 'path must be one of'),
    ],
)
def test_arms_that_would_ignore_an_option_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        scans.ScanAblation(arch=ARCH, **options)


def fail_or_sleep(name, arm, *rest):
    if arm == 'no scan':
        raise UserError('no memory')
    time.sleep(100)


def test_a_failed_run_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_decay, 'run', fail_or_sleep)
    arguments = ['tracing', '--quick', '--arms', 'no scan', 'tree', '--jobs', '2']
    start = time.monotonic()
    with pytest.raises(UserError, match='no memory'):
        edge_decay.main([*arguments, '--work-dir', str(tmp_path), '--out', str(tmp_path / 'a.jsonl')])
    assert time.monotonic() - start < 60


@pytest.mark.parametrize('rate', ['-1', 'nan', 'fast'])
def test_a_rate_is_above_zero(rate, capsys):
    with pytest.raises(SystemExit):
        edge_decay.main(['tracing', '--rate', rate])
    assert f'argument --rate: must be a number above 0, got {rate}' in capsys.readouterr().err
