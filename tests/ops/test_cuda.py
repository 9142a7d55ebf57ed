"""The CUDA operators against the CPU's: emulated on the host, and on the device where there is one."""

import itertools

import pytest
import torch

from grootv import ops
from grootv.ops.grid_graph import grid_edges
from tests.ops.cases import GRIDS, SCAN_DTYPES, assert_same_tree, features, scan_inputs
from tests.ops.cuda_backend import BACKENDS, FULL_SIZE, Backend, assert_close, assert_close_sums, graphs
from tests.ops.test_token_scan import inputs, tree_over


@pytest.mark.parametrize('metric', ops.METRICS)
@pytest.mark.parametrize('kind', ['normal', 'equal', 'binary', 'special'])
def test_edge_weights_are_equal(backend, kind, metric):
    for (height, width), channels, batch in itertools.product(GRIDS, (1, 7, 40), (0, 2)):
        maps = features(kind, batch, height, width, channels)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            found = backend.grid_edge_weight(maps.to(dtype), metric)
            expected = ops.grid_edge_weight(maps.to(dtype), metric)
            assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9))


@pytest.mark.parametrize(
    ('kind', 'batch'),
    [('normal', 0), ('normal', 1), ('equal', 1), ('binary', 1), ('special', 1), ('binary', 4)],
)
def test_trees_are_equal(backend, kind, batch):
    for height, width in GRIDS + backend.large:
        maps, vertices = features(kind, batch, height, width, 7), height * width
        weight = ops.grid_edge_weight(maps)
        tree_edges = ops.minimum_spanning_tree(weight, height, width)
        assert torch.equal(backend.minimum_spanning_tree(weight, height, width), tree_edges)
        for root in {0, vertices // 2}:
            tree = ops.breadth_first_order(tree_edges, height, width, root)
            assert_same_tree(ops.Tree(*backend.breadth_first_order(tree_edges, height, width, root)), tree)
            assert_same_tree(ops.Tree(*backend.build_tree(maps, 'cosine', root)), tree)


@pytest.mark.parametrize('name', [*BACKENDS, *FULL_SIZE])
def test_maps_of_the_network(name):
    backend = Backend(name)
    shapes = [(1, 56, 56), (5, 14, 14)]  # emulated, for the trees: the whole grid, and a block each
    shapes += [] if name == 'emulated' else [(2, 56, 56), (3, 7, 7), (1, 64, 65)]
    for batch, height, width in shapes:
        maps = features('normal', batch, height, width, 16)
        tree = ops.build_tree(maps)
        assert_same_tree(ops.Tree(*backend.build_tree(maps, 'cosine', 0)), tree)
        signal, decay = torch.randn(batch, height * width, 20), torch.rand(batch, height * width, 20)
        given = signal, decay, -torch.rand(20), signal[..., 0], torch.rand(20), *tree, True
        for operator, arguments in (
            ('tree_scan', (signal, decay, *tree, 'both')),
            ('tree_scan_backward', (signal.flip(1), signal, decay, *tree, 'both')),
            ('selective_tree_scan', given),
            ('selective_tree_scan_backward', (signal.flip(1), *given)),
        ):
            found, expected = (
                getattr(backend, operator)(*arguments),
                getattr(torch.ops.grootv, operator)(*arguments),
            )
            if isinstance(found, torch.Tensor):
                found, expected = (found,), (expected,)
            for ours, theirs in zip(found, expected, strict=True):
                assert_close(ours, theirs)


def test_non_contiguous_inputs(backend):
    maps = features('normal', 2, 7, 5, 12).permute(0, 2, 1, 3)[..., ::2]
    tree = ops.build_tree(maps)
    assert_same_tree(ops.Tree(*backend.build_tree(maps, 'cosine', 0)), tree)
    signal, decay = torch.randn(2, 6, 35).mT, torch.rand(2, 6, 35).mT
    assert_close(backend.tree_scan(signal, decay, *tree, 'both'), ops.tree_scan(signal, decay, tree))
    # Not aligned to 16 bytes.
    signal, decay = (torch.rand(2 * 35 * 4 + 1)[1:].view(2, 35, 4) for _ in range(2))
    assert_close(backend.tree_scan(signal, decay, *tree, 'both'), ops.tree_scan(signal, decay, tree))
    *tensors, bias = inputs(2, 20, 6, 6)
    x, delta, A, B, C = (tensor.mT.contiguous().mT for tensor in tensors)
    given = x[..., ::2], delta[..., ::2], A[::2, ::2], B[..., ::2], C[..., 1::2], bias[::2]
    tree = [field.mT.contiguous().mT for field in tree_over('random', 2, 20)[:2]]
    grads = x.flip(2)[..., ::2], torch.randn(3, 3, 2).double().permute(2, 0, 1)
    for name, arguments in (
        ('token_scan', (*given, *tree, True)),
        ('token_scan_backward', (*grads, *given, *tree, True)),
    ):
        expected = getattr(torch.ops.grootv, name)(*arguments)
        for ours, theirs in zip(getattr(backend, name)(*arguments), expected, strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize(('name', 'edges', 'vertices'), list(graphs()), ids=lambda value: str(value)[:6])
def test_any_graph(backend, name, edges, vertices, batch):
    weight = torch.rand(batch, len(edges))
    weight[:, -vertices + 1 :] -= 0.9  # mostly the tree, so that it keeps its form
    edges = edges.unsqueeze(0)
    tree_edges = ops.minimum_spanning_tree_from_edges(edges[0], weight, vertices)
    assert torch.equal(backend.minimum_spanning_tree_from_edges(edges, weight, vertices), tree_edges)
    tree = ops.breadth_first_order_from_edges(edges[0], tree_edges, vertices, 7)
    found = backend.breadth_first_order_from_edges(edges, tree_edges, vertices, 7)
    assert_same_tree(ops.Tree(*found), tree)
    signal, decay = torch.randn(batch, vertices, 3), torch.rand(batch, vertices, 3)
    for direction in ('both', 'up'):
        expected = ops.tree_scan(signal, decay, tree, direction)
        assert_close(backend.tree_scan(signal, decay, *tree, direction), expected)


@pytest.mark.parametrize('dtype', SCAN_DTYPES)
@pytest.mark.parametrize('batch', [0, 1, 4])
def test_scans_and_their_gradients(backend, batch, dtype):
    large = backend.large if dtype in (torch.float32, torch.bfloat16) else []
    for (height, width), channels in itertools.product(GRIDS + large, (1, 40)):
        signal, decay, tree = scan_inputs(batch, height, width, channels, dtype)
        grad = torch.randn(signal.shape).to(dtype)
        for direction in ('both', 'up'):
            found = backend.tree_scan(signal, decay, *tree, direction)
            assert_close(found, ops.tree_scan(signal, decay, tree, direction))
            arguments = (grad, signal, decay, *tree, direction)
            expected = torch.ops.grootv.tree_scan_backward(*arguments)
            for ours, theirs in zip(backend.tree_scan_backward(*arguments), expected, strict=True):
                assert_close(ours, theirs)


def test_scans_of_many_channels(backend):
    """Emulated, more slices of channels than blocks may wait for each other."""
    for batch, channels in ((1, 200), (2, 33)):
        signal, decay, tree = scan_inputs(batch, *backend.large[0], channels)
        assert_close(backend.tree_scan(signal, decay, *tree, 'both'), ops.tree_scan(signal, decay, tree))
        arguments = (signal.flip(1), signal, decay, -torch.rand(channels), signal[..., 0], None, *tree, True)
        expected = torch.ops.grootv.selective_tree_scan_backward(*arguments)
        for ours, theirs in zip(backend.selective_tree_scan_backward(*arguments), expected, strict=True):
            assert_close_sums(ours, theirs)


@pytest.mark.parametrize('name', FULL_SIZE)
def test_sums_beyond_the_shared_memory(name, monkeypatch):
    """A smaller device keeps those of a forward pass in a block and gives the grid to a backward pass."""
    monkeypatch.setenv('GROOTV_SHARED_BYTES', str(99 << 10))
    backend = Backend(name)
    signal, decay, tree = scan_inputs(1, 64, 64, 12)
    assert_close(backend.tree_scan(signal, decay, *tree, 'both'), ops.tree_scan(signal, decay, tree))
    arguments = (signal.flip(1), signal, decay, *tree, 'both')
    expected = torch.ops.grootv.tree_scan_backward(*arguments)
    for ours, theirs in zip(backend.tree_scan_backward(*arguments), expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize('dtype', SCAN_DTYPES)
@pytest.mark.parametrize(
    ('batch', 'with_bias', 'softplus'), [(0, True, True), (1, False, True), (4, True, False)]
)
def test_selective_scans_and_their_gradients(backend, batch, with_bias, softplus, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    for (height, width), channels in itertools.product([(1, 1), (3, 5), *backend.large[:1]], (1, 40)):
        x, delta, tree = scan_inputs(batch, height, width, channels, dtype)
        rate, write = -torch.rand(channels, dtype=wide), torch.randn(batch, height * width).to(dtype)
        bias = torch.rand(channels, dtype=wide) if with_bias else None
        arguments = (x, delta, rate, write, bias, *tree, softplus)
        expected = torch.ops.grootv.selective_tree_scan(*arguments)
        assert_close(backend.selective_tree_scan(*arguments), expected)
        arguments = (torch.randn(x.shape).to(dtype), *arguments)
        expected = torch.ops.grootv.selective_tree_scan_backward(*arguments)
        names = ('x', 'delta', 'A', 'B', 'delta_bias')
        found = backend.selective_tree_scan_backward(*arguments)
        for name, ours, theirs in zip(names, found, expected, strict=True):
            # Sums over all vertices or channels, whose terms cancel.
            ours, theirs = (
                (ours.double(), theirs.double()) if name in ('A', 'B', 'delta_bias') else (ours, theirs)
            )
            if ours.dtype == torch.float64 and dtype != torch.float64:
                torch.testing.assert_close(ours, theirs, rtol=1e-2 if wide != dtype else 1e-4, atol=1e-2)
            else:
                assert_close(ours, theirs)


@pytest.mark.parametrize(
    ('dtype', 'gate_dtype'),
    [
        (torch.float64,) * 2,
        (torch.float32,) * 2,
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
)
def test_gated_read_outs_and_their_gradients(backend, dtype, gate_dtype):
    for batch, vertices, channels in [(0, 3, 5), (1, 1, 1), (2, 9, 33), (1, 300, 70), (3, 200, 8)]:
        rows, vector = (batch, vertices, channels), (channels,)
        shapes = rows, rows[:2], rows, vector, rows, vector, vector, vector, vector
        arguments = [torch.randn(shape, dtype=dtype) for shape in shapes]
        arguments[4] = arguments[4].to(gate_dtype)
        expected = torch.ops.grootv.gated_read_out(*arguments, 1e-3)
        assert_close(backend.gated_read_out(*arguments, 1e-3), expected)
        arguments = (torch.randn(rows, dtype=dtype).to(gate_dtype), *arguments, 1e-3)
        expected = torch.ops.grootv.gated_read_out_backward(*arguments)
        for ours, theirs in zip(backend.gated_read_out_backward(*arguments), expected, strict=True):
            assert_close_sums(ours, theirs)


def test_the_same_bits_twice(backend, monkeypatch):
    """Whichever threads come first."""
    signal, decay, tree = scan_inputs(2, *backend.large[0], 40)
    vectors = -torch.rand(40), torch.rand(40)
    *tensors, bias = inputs(2, 40, 40, 20, torch.float32)
    tokens = tree_over('published', 2, 40)
    grads = tensors[0].flip(1), torch.randn(2, 40, 20)
    calls = {
        'tree_scan_backward': [
            (signal.flip(1), signal, decay, *tree, 'both'),
            (signal.flip(1), signal, decay, *tree, 'up'),
        ],
        'selective_tree_scan_backward': [
            (signal.flip(1), signal, decay, vectors[0], signal[..., 0], vectors[1], *scan_tree, True)
            for signal, decay, scan_tree in ((signal, decay, tree), scan_inputs(2, 8, 8, 40))
        ],
        'token_scan_backward': [(*grads, *tensors, bias, tokens.order, tokens.parent, True)],
    }
    for name, arguments in ((name, arguments) for name, cases in calls.items() for arguments in cases):
        monkeypatch.delenv('GROOTV_REVERSED', raising=False)
        once = getattr(backend, name)(*arguments)
        monkeypatch.setenv('GROOTV_REVERSED', '1')
        assert all(map(torch.equal, once, getattr(backend, name)(*arguments)))


@pytest.mark.parametrize('batch', [1, 4])
def test_a_tree_that_is_none_gives_nan(backend, batch):
    """The device cannot raise an error without waiting, but neither may it hang or read beyond its memory."""
    for (height, width), dtype in itertools.product(
        [(3, 4), backend.large[0]], (torch.float32, torch.bfloat16)
    ):
        signal, decay, tree = scan_inputs(batch, height, width, 5, dtype)
        vertices = height * width
        wrong = {
            'a vertex twice': tree._replace(order=tree.order.clone().index_fill_(1, torch.tensor([1]), 0)),
            'no vertex': tree._replace(order=tree.order.clone().index_fill_(1, torch.tensor([2]), vertices)),
            'no parent': tree._replace(parent=tree.parent.clone().index_fill_(1, torch.tensor([3]), -1)),
            'a cycle': tree._replace(parent=torch.arange(vertices, dtype=torch.int32).expand(batch, -1)),
            'not by level': tree._replace(order=tree.order.flip(1)),
        }
        for name, bad in wrong.items():
            for direction in ('both', 'up'):
                assert backend.tree_scan(signal, decay, *bad, direction).isnan().all(), name
                for grad in backend.tree_scan_backward(signal, signal, decay, *bad, direction):
                    assert grad.isnan().all(), name
        if batch > 1:  # the other items keep their results
            order = tree.order.clone()
            order[0, 1] = order[0, 0]
            found = backend.tree_scan(signal, decay, order, *tree[1:], 'both')
            assert found[0].isnan().all()
            assert_close(found[1:], ops.tree_scan(signal, decay, tree)[1:])


def test_wrong_edges_are_not_told_where_nothing_waits_for_them(backend, monkeypatch):
    monkeypatch.setenv('GROOTV_NO_WAIT', '1')
    edges, weight = grid_edges(3, 4).int().unsqueeze(0), torch.rand(1, 17)
    tree_edges = backend.minimum_spanning_tree_from_edges(edges.clamp(max=10), weight, 12, False)
    assert (tree_edges == -1).any()
    order, parent = backend.breadth_first_order_from_edges(edges, tree_edges, 12, 0, False)
    assert (order == -1).any()
    assert (parent == -1).any()


def test_a_wrong_item_leaves_the_others_alone_during_a_capture(monkeypatch):
    monkeypatch.setenv('GROOTV_CAPTURE', '1')
    emulated = Backend('emulated')
    for height, width in [(4, 5), (9, 11)]:
        vertices = height * width
        weight = torch.rand(3, 2 * vertices - height - width)
        tree_edges = ops.minimum_spanning_tree(weight, height, width)
        edges = grid_edges(height, width).int().expand(3, -1, 2).clone()
        edges[1] = edges[1].clamp(max=vertices - 3)  # two vertices are joined to nothing
        found = emulated.minimum_spanning_tree_from_edges(edges, weight, vertices)
        assert torch.equal(found[::2], tree_edges[::2])
        assert (found[1] == -1).any()
        wrong = tree_edges.clone()
        wrong[1, 0] = wrong[1, 1]
        tree = ops.breadth_first_order(tree_edges, height, width)
        for found in (
            emulated.breadth_first_order(wrong, height, width, 0),
            emulated.breadth_first_order_from_edges(edges[:1], wrong, vertices, 0),
        ):
            for part, expected in zip(found, tree, strict=True):
                assert torch.equal(part[::2], expected[::2])
            assert (found[0][1] == -1).any()
            signal = torch.rand(3, vertices, 2)
            h = emulated.tree_scan(signal, signal, *found, 'both')
            assert h[1].isnan().all()
            assert_close(h[::2], ops.tree_scan(signal, signal, tree)[::2])


@pytest.mark.skipif('cuda' not in BACKENDS, reason='no GPU')
def test_a_block_is_captured_in_a_cuda_graph():
    from grootv.models.layers.tree_ssm import TreeSSM

    layer, static = TreeSSM(16).cuda(), torch.randn(2, 12, 12, 16, device='cuda', requires_grad=True)
    parameters = [static, *layer.parameters()]

    def step():
        output, _ = layer(static)
        return output, *torch.autograd.grad(output.square().sum(), parameters)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            static.copy_(torch.randn_like(static))
        graph.replay()
        for found, expected in zip(captured, step(), strict=True):
            torch.testing.assert_close(found, expected)


def test_bad_input_is_told_as_on_the_cpu(backend):
    signal, decay, tree = scan_inputs(2, 3, 4, 5)
    maps, weight = features('normal', 2, 3, 4, 5), torch.rand(2, 17)
    context = torch.zeros(2, 2, dtype=torch.int32)
    *tokens, bias = inputs(2, 12, 5, 3, torch.float32)
    tokens = (*tokens, bias, *tree[:2], True)
    edges = grid_edges(3, 4).int().unsqueeze(0)
    tree_edges = ops.minimum_spanning_tree(weight, 3, 4)
    loop = tree_edges.clone()
    loop[:, 0] = loop[:, 1]
    apart, outside = edges.clamp(max=10), edges + 5
    calls = [
        ('grid_edge_weight', (maps[0], 'cosine')),
        ('grid_edge_weight', (maps.int(), 'cosine')),
        ('minimum_spanning_tree', (weight, 3, 5)),
        ('minimum_spanning_tree', (weight.double(), 3, 4)),
        ('minimum_spanning_tree', (weight, 1 << 20, 1 << 20)),
        ('minimum_spanning_tree_from_edges', (apart, weight, 12)),
        ('minimum_spanning_tree_from_edges', (outside, weight, 12)),
        ('breadth_first_order', (tree_edges, 3, 4, 12)),
        ('breadth_first_order', (loop, 3, 4, 0)),
        ('breadth_first_order', (tree_edges + 99, 3, 4, 0)),
        ('breadth_first_order_from_edges', (edges, loop, 12, 0)),
        ('breadth_first_order_from_edges', (outside, tree_edges, 12, 0)),
        ('breadth_first_order_from_edges', (edges, tree_edges - 5, 12, 0)),
        ('build_tree', (maps, 'cosine', -1)),
        ('build_tree', (maps, 'mahalanobis', 0)),
        ('tree_scan', (signal, decay.double(), *tree, 'both')),
        ('tree_scan', (signal[:1], decay, *tree, 'both')),
        ('tree_scan', (signal, decay, *tree, 'down')),
        ('selective_tree_scan', (signal, decay, decay[0, 0], decay[0], None, *tree, True)),
        ('token_edge_weight', (signal, decay, context, 0)),
        ('token_edge_weight', (signal, decay[:, 1:], context, 3)),
        ('token_edge_weight', (signal, decay, context.long(), 3)),
        ('token_scan', (*tokens[:1], signal[..., 1:], *tokens[2:])),
        ('token_scan', (signal.half(), *tokens[1:])),
        ('token_scan', (*tokens[:5], bias[1:], *tokens[6:])),
        ('token_scan_backward', (signal, signal, *tokens)),
        ('gated_read_out', (signal, weight, signal, *[signal[0, 0]] * 2, *[weight[0]] * 4, 1e-5)),
        ('gated_read_out', (signal.half(), weight, signal, *[signal[0, 0]] * 2, *[weight[0]] * 4, 1e-5)),
    ]
    for name, arguments in calls:
        with pytest.raises(RuntimeError) as expected:
            getattr(torch.ops.grootv, name)(*arguments)
        with pytest.raises(RuntimeError) as found:
            getattr(backend, name)(*arguments)
        # Which of several wrong items or values is named depends on the order of threads.
        sentence = [
            str(error.value).splitlines()[0].rpartition(', got')[0] or str(error.value)
            for error in (found, expected)
        ]
        assert sentence[0].split('item')[0] == sentence[1].split('item')[0]


def test_a_batch_beyond_the_limit_is_refused():
    maps = torch.ones(1, 1, 1, 1).expand(1 << 20, 1 << 5, 1 << 5, 1)
    with pytest.raises(
        RuntimeError, match=r'build_tree: a batch on a CUDA device must have at most 2.29 vertices'
    ):
        Backend('emulated').build_tree(maps, 'cosine', 0)
