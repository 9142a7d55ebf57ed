"""Every operator refuses bad input with a sentence that names the operator and the argument."""

import pytest
import torch

from grootv import ops
from grootv.ops.grid_graph import grid_edges
from tests.ops import cases

TREE = cases.spanning_tree(2, 3, 3)
x, delta, A, B, bias, distance, scale = cases.selective_tree_scan(TREE, 4, distance=True).tensors
rows, _, rates, states, _, shift = cases.token_scan(cases.token_tree('chain', 2, 5), 4, 3).tensors
TOKENS = dict(x=rows, delta=rows, A=rates, B=states, C=states, delta_bias=shift, tree=ops.token_chain(2, 5))
h, C, _, D, z, *norms = cases.gated_read_out(2, 9, 4).tensors
CONTEXT = torch.tensor([[0, 5], [0, 5]])
ONES = torch.ones(2, 9, 4)
SHORT = ONES[..., :3]
ONE = torch.ones(1, 1)
TRIANGLE = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]])
IN_PARTS = dict(edges=TRIANGLE[[0, 3, 0]], edge_weight=torch.ones(1, 3), num_vertices=4)
NOT_A_TREE = 'tree_edges must be a spanning tree of the'
FLOATING = 'must be float32, float64, float16 or bfloat16, got int32'
NO_LIST = 'got (2, 36)'
FEW_CHANNELS = 'needs one value per vertex and channel, shape (2, 9, 4), got (2, 9, 3)'
ONE_TREE = cases.spanning_tree(1, 3, 3)
OLD_ORDER = TREE._replace(order=TREE.order.long())


def ints(*rows):
    return torch.tensor(rows, dtype=torch.int32)


GOOD = {
    'tree_scan': dict(input=ONES, decay=ONES, tree=TREE),
    'selective_tree_scan': dict(
        x=x, delta=delta, A=A, B=B, delta_bias=bias, distance=distance, scale=scale, tree=TREE
    ),
    'gated_read_out': dict(h=h, C=C, x=x, D=D, z=z, h_norm=norms[:2], y_norm=norms[2:]),
    'token_scan': TOKENS,
    'token_edge_weight': dict(x=rows, B=states, context=CONTEXT, reach=3),
    'grid_edge_weight': dict(features=torch.ones(1, 2, 2, 1)),
    'build_tree': dict(features=torch.ones(1, 2, 2, 1)),
    'tree_edge_distance': dict(features=ONES, tree=TREE),
    'minimum_spanning_tree': dict(edge_weight=torch.ones(2, 4), height=2, width=2),
    'minimum_spanning_tree_from_edges': dict(edges=TRIANGLE[:1], edge_weight=ONE, num_vertices=2),
    'breadth_first_order': dict(tree_edges=ints([0, 1, 2]), height=2, width=2),
    'breadth_first_order_from_edges': dict(edges=TRIANGLE, tree_edges=ints([0, 1, 3]), num_vertices=4),
}
BAD = {  # what to change for which sentence
    'tree_scan': [
        (dict(decay=SHORT), f'decay {FEW_CHANNELS}'),
        (dict(decay=ONES.double()), 'decay must be float32, got float64'),
        (dict(input=ONES.flatten(1)), f'input must have shape (B, L, C), {NO_LIST}'),
        (dict(input=ONES.int()), f'input {FLOATING}'),
        (dict(tree=ONE_TREE), 'order needs one entry per vertex of each item, shape (2, 9), got (1, 9)'),
        (dict(tree=OLD_ORDER), 'order must be int32, got int64'),
        (dict(direction='down'), "direction must be one of both, up, got 'down'"),
    ],
    'selective_tree_scan': [
        (dict(x=x.flatten(1)), f'x must have shape (B, L, C), {NO_LIST}'),
        (dict(x=x[:, :0]), 'x must have at least one vertex, got shape (2, 0, 4)'),
        (dict(x=x.int()), f'x {FLOATING}'),
        (dict(delta=SHORT), f'delta {FEW_CHANNELS}'),
        (dict(delta=delta.double()), 'delta must be float32, got float64'),
        (dict(A=torch.ones(4, 16)), 'A needs one value per channel, shape (4), got (4, 16)'),
        (dict(B=B[:, :4]), 'B needs one value per vertex, shape (2, 9), got (2, 4)'),
        (dict(x=x.half(), delta=delta.half()), 'B must be float16, got float32'),
        (dict(delta_bias=torch.ones(5)), 'delta_bias needs one value per channel, shape (4), got (5)'),
        (dict(distance=SHORT), 'distance needs one value per vertex, shape (2, 9), got (2, 9, 3)'),
        (dict(distance=distance[:, :8]), 'distance needs one value per vertex, shape (2, 9), got (2, 8)'),
        (dict(scale=torch.ones(5)), 'scale needs one value per channel, shape (4), got (5)'),
        (dict(distance=None), 'distance and scale must be given together, got scale alone; give both or'),
        (dict(scale=None), 'distance and scale must be given together, got distance alone; give both or'),
        (dict(tree=OLD_ORDER), 'order must be int32, got int64'),
    ],
    'gated_read_out': [
        (dict(h=h.flatten(1)), f'h must have shape (B, L, C), {NO_LIST}'),
        (dict(h=h.half()), 'h must be float32 or float64, got float16'),
        (dict(C=C[:, :4]), 'C needs one value per vertex, shape (2, 9), got (2, 4)'),
        (dict(x=SHORT), f'x {FEW_CHANNELS}'),
        (dict(x=x.double()), 'x must be float32, got float64'),
        (dict(z=z.double()), 'z must be float32, float16 or bfloat16, got float64'),
        (dict(z=z.int()), f'z {FLOATING}'),
        (dict(z=SHORT), f'z {FEW_CHANNELS}'),
        (dict(D=torch.ones(5)), 'D needs one value per channel, shape (4), got (5)'),
        (dict(y_norm=(D, torch.ones(1))), 'y_bias needs one value per channel, shape (4), got (1)'),
    ],
    'token_scan': [
        (dict(x=rows[0]), 'x must have shape (B, L, D), got (5, 4)'),
        (dict(x=rows.int()), f'x {FLOATING}'),
        (dict(delta=rows[..., :3]), 'delta needs one value per token and channel, shape (2, 5, 4)'),
        (dict(A=rates[:3]), 'A needs one row per channel, shape (4, 3), got (3, 3)'),
        (dict(B=states[..., :2]), 'B needs one value per token and state, shape (2, 5, 3)'),
        (dict(C=states.double()), 'C must be float32, got float64'),
        (dict(delta_bias=shift[:3]), 'delta_bias needs one value per channel, shape (4), got (3)'),
        (dict(tree=ops.token_chain(2, 4)), 'order needs one entry per token of each sequence'),
    ],
    'token_edge_weight': [
        (dict(x=rows[0]), 'x must have shape (B, L, C), got (5, 4)'),
        (dict(x=rows.int()), f'x {FLOATING}'),
        (dict(x=rows[:, :0], B=states[:, :0]), 'at least one token'),
        (dict(B=states[:, :4]), 'one row per token, shape (2, 5, 3), got (2, 4, 3)'),
        (dict(B=states.double()), 'B must be float32, got float64'),
        (dict(context=CONTEXT[0]), 'two bounds per sequence'),
        (dict(reach=0), 'reach must be at least 1, got 0'),
    ],
    'grid_edge_weight': [
        (dict(features=ONES), 'features must have shape (B, H, W, C), got (2, 9, 4)'),
        (dict(features=torch.ones(1, 2, 2, 1).int()), f'features {FLOATING}'),
        (dict(features=torch.ones(1, 0, 2, 1)), 'at least one row and one column, got 0 x 2'),
        (dict(metric='cosin'), "metric must be one of cosine, euclidean, manhattan, got 'cosin'"),
    ],
    'build_tree': [
        (dict(features=ONES), 'features must have shape (B, H, W, C), got (2, 9, 4)'),
        (dict(root=-1), 'root must be a vertex, 0 to 3, got -1'),
        (dict(metric='cosin'), "metric must be one of cosine, euclidean, manhattan, got 'cosin'"),
    ],
    'tree_edge_distance': [
        (dict(features=ONES.flatten(1)), f'features must have shape (B, L, C), {NO_LIST}'),
        (dict(features=ONES.int()), 'features must be floating, got torch.int32'),
        (dict(features=ONES.view(2, 3, 3, 4)[:, 1:]), 'shape (2, 6), got (2, 9)'),
        (dict(features=ONES[:, :0]), 'features must have at least one vertex, got shape (2, 0, 4)'),
        (dict(tree=ONE_TREE), 'order needs one entry per vertex of each item, shape (2, 9), got (1, 9)'),
        (dict(tree=OLD_ORDER), 'order must be int32, got int64'),
        (dict(metric='cosin'), "metric must be one of cosine, euclidean, manhattan, got 'cosin'"),
    ],
    'minimum_spanning_tree': [
        (dict(edge_weight=torch.ones(2, 5)), 'one value per edge of the grid, shape (2, 4), got (2, 5)'),
        (dict(height=0), 'at least one row'),
        (dict(height=65536, width=65536), 'at most 2^30'),
        (dict(edge_weight=torch.ones(2, 4).int()), 'edge_weight must be floating, got torch.int32'),
    ],
    'minimum_spanning_tree_from_edges': [
        (IN_PARTS, 'every graph must be connected, but graph 0'),
        (dict(num_vertices=2**30), 'be connected, but 1 edges cannot join 1073741824 vertices'),
        (dict(edges=torch.tensor([[0, 7]])), 'edges must join vertices 0 to 1, got 7'),
        (dict(edges=torch.tensor([[0, 2**33 + 1]])), 'edges must join vertices 0 to 1, got 2147483647'),
        (dict(edge_weight=torch.ones(1, 2)), 'shape (1, 2, 2), got (1, 1, 2)'),
        (dict(edges=TRIANGLE[:1].float()), 'edges must be int32, got float32'),
    ],
    'breadth_first_order': [
        (
            dict(tree_edges=ints([0, 1, 3, 5, 0]), width=3),
            f'{NOT_A_TREE} 2 x 3 grid, but those of item 0',
        ),
        (dict(tree_edges=ints([0, 1, 99])), NOT_A_TREE),
        (dict(tree_edges=ints([0, 1])), 'one edge less than the grid has vertices, shape (1, 3), got'),
        (dict(tree_edges=ints([0, 1, 2]).long()), 'tree_edges must be int32, got int64'),
        (dict(root=4), 'root must be a vertex, 0 to 3, got 4'),
    ],
    'breadth_first_order_from_edges': [
        (dict(tree_edges=ints([0, 1, 2])), f'{NOT_A_TREE} graph, but those of item 0'),  # a cycle
        (dict(tree_edges=ints([0, 0, 3])), NOT_A_TREE),  # an edge twice
        (dict(tree_edges=ints([0, 0]), num_vertices=3), NOT_A_TREE),  # and as many vertices as there are
        (dict(tree_edges=ints([0, 1, 4])), NOT_A_TREE),
        (dict(edges=TRIANGLE + 5), NOT_A_TREE),
    ],
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(backend, name):
    for change, sentence in BAD[name]:
        with pytest.raises((RuntimeError, ValueError)) as error:
            getattr(backend.ops, name)(**cases.to_device(GOOD[name] | change, backend.device))
        assert str(error.value).startswith(f'{name}: ') and sentence in str(error.value)


MANY = 2**40
ROW = torch.ones(1, 3, 1).expand(1, 3, MANY)
CHANNELS = torch.ones(1).expand(MANY)
PATH = ops.Tree(ints([0, 1, 2]), ints([0, 0, 1]))
WEIGHTS = torch.ones(1, 1).expand(MANY, 1)
TOO_LARGE = {  # arguments that take little memory, and the bytes that the operator asks for
    'tree_scan': (dict(input=ROW, decay=ROW, tree=PATH), 12),
    'selective_tree_scan': (dict(x=ROW, delta=ROW, A=CHANNELS, B=torch.ones(1, 3), tree=PATH), 12),
    'gated_read_out': (
        dict(
            h=ROW, C=torch.ones(1, 3), x=ROW, D=CHANNELS, z=ROW, h_norm=[CHANNELS] * 2, y_norm=[CHANNELS] * 2
        ),
        12,
    ),
    'token_scan': (
        dict(
            x=ROW,
            delta=ROW,
            A=WEIGHTS,
            B=torch.ones(1, 3, 1),
            C=torch.ones(1, 3, 1),
            tree=ops.token_chain(1, 3),
        ),
        12,
    ),
    'token_edge_weight': (dict(x=ROW, B=torch.ones(1, 3, 1), context=torch.tensor([[0, 3]])), 12),
    'grid_edge_weight': (dict(features=torch.ones(1, 1, 2, 1).half().expand(MANY, 1, 2, 1)), 8),
    'build_tree': (dict(features=torch.ones(1, 1, 2, 1).expand(MANY, 1, 2, 1)), 8),
    'tree_edge_distance': (dict(features=ROW, tree=PATH), 12),
    'minimum_spanning_tree': (dict(edge_weight=WEIGHTS, height=1, width=2), 4),
    'minimum_spanning_tree_from_edges': (
        dict(edges=TRIANGLE[:1], edge_weight=WEIGHTS, num_vertices=2),
        4,
    ),
    'breadth_first_order': (dict(tree_edges=ints([0]).expand(MANY, 1), height=1, width=2), 4),
    'breadth_first_order_from_edges': (
        dict(edges=TRIANGLE[:1], tree_edges=ints([0]).expand(MANY, 1), num_vertices=2),
        4,
    ),
}


@pytest.mark.devices('cpu')
@pytest.mark.parametrize('name', TOO_LARGE)
def test_memory_that_runs_out_is_reported_with_its_size(backend, name):
    arguments, size = TOO_LARGE[name]
    with pytest.raises(RuntimeError) as error:
        getattr(ops, name)(**arguments)
    assert str(error.value) == f'{name}: out of memory: cannot allocate {size * MANY} bytes'
    explain = pytest.importorskip('grootv.cli', reason='the tools need mmengine').explain
    expected = f'memory ran out in grootv.ops.{name} (cannot allocate {size * MANY} bytes): lower train_data'
    assert str(explain(error.value)).startswith(expected)
    with pytest.raises(RuntimeError) as error:  # outside of an operator
        CHANNELS.contiguous()
    assert str(explain(error.value)).startswith('memory ran out: lower train_dataloader.batch_size')
    assert explain(RuntimeError(f'{name}: out of memory')).startswith(
        f'memory ran out in grootv.ops.{name}: '
    )


@pytest.mark.parametrize('value', [2**31, 2**32 + 1, -(2**32), 2**62])
def test_numbers_beyond_int32_do_not_wrap(backend, value):
    for name, argument in [
        ('build_tree', 'root'),
        ('breadth_first_order', 'root'),
        ('breadth_first_order', 'height'),
        ('breadth_first_order_from_edges', 'root'),
        ('breadth_first_order_from_edges', 'num_vertices'),
        ('minimum_spanning_tree', 'width'),
        ('minimum_spanning_tree_from_edges', 'num_vertices'),
        ('token_edge_weight', 'reach'),
    ]:
        with pytest.raises(RuntimeError, match=rf'^{name}: .*got .*{value}'):
            getattr(backend.ops, name)(**cases.to_device(GOOD[name], backend.device) | {argument: value})


@pytest.mark.devices('cpu')
def test_scans_count_vertices_in_int32(backend):
    many = torch.ones(1, 1, 1).expand(1, MANY, 1)
    tree = ops.Tree(*[ints([0]).expand(1, MANY)] * 2)
    with pytest.raises(RuntimeError, match=rf'tree_scan: order must have at most 2\^30 vertices, got {MANY}'):
        ops.tree_scan(many, many, tree)


def test_lists_of_a_bad_length_are_refused():
    for function, sizes in [
        (ops.token_chain, ((2, 0), (2, -1), (2, 2**32), (-1, 2))),
        (ops.token_edges, ((0, 2), (-1, 2), (2, 0), (2**32, 1), (2, 2**30))),
        (grid_edges, ((0, 2), (2, -1), (2**32, 1), (2**16, 2**15))),
    ]:
        for size in sizes:
            with pytest.raises(ValueError, match=rf'^{function.__name__}: .*, got {size[0]} .*{size[1]}'):
                function(*size)
