"""The CUDA kernels alone: order of threads, shared memory, missing waits, captures and limits."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grootv import ops
from grootv.ops.grid_graph import grid_edges
from tests.ops import cases, test_scan
from tests.ops.devices import load
from tests.ops.test_differentiable import OPERATORS, check
from tests.ops.test_tree import check_steps

SCANS = [form for form in OPERATORS if 'tree_scan' in form]
emulated, cuda = pytest.mark.devices('emulated'), pytest.mark.devices('cuda')
not_sanitized = pytest.mark.skipif('GROOTV_SANITIZER' in os.environ, reason='sanitizers see the small blocks')


@emulated
@pytest.mark.parametrize('form', ['tree_scan up', *OPERATORS])
def test_any_order_of_threads_returns_the_same_bits(backend, monkeypatch, form):
    """The emulation may run the threads of a block from last to first."""
    for grid, channels in (((5, 8), 20), ((20, 17) if form != 'token_scan published' else (1, 9), 5)):
        call, maps = cases.make(form, 2, *grid, channels, states=20), cases.features('binary', 2, *grid, 7)
        results = []
        for reverse in (False, True):
            with monkeypatch.context() as patch:
                if reverse:
                    patch.setenv('GROOTV_REVERSED', '1')
                results.append((*call.with_gradients(backend.ops), backend.ops.build_tree(maps)))
        for one, two in zip(*results, strict=True):
            cases.assert_same(one, two)


class Recorded(TorchDispatchMode):
    """Names the operators that run, and the last argument of each."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.setdefault(function.__name__.partition('.')[0], []).append(args[-1])
        return function(*args, **(kwargs or {}))


@pytest.mark.devices('emulated', 'cuda')
@pytest.mark.parametrize('form', SCANS)
def test_a_tree_is_decomposed_once_in_training(backend, form):
    for grid in ((5, 8), (9, 11)):
        call = cases.make(form, 2, *grid, 5).to(backend.device)
        name = call.name
        with Recorded() as recorded:
            found, gradients = call.with_gradients(backend.ops)
        assert len(recorded.calls['heavy_light']) == 1
        (given,), (kept,) = recorded.calls[name], recorded.calls[f'{name}_backward']
        assert given.data_ptr() == kept.data_ptr()
        shifted = given.new_empty(given.numel() + 1)[1:].view_as(given).copy_(given)  # not at 16 bytes
        # Without it the operators decompose the tree themselves.
        arguments = *call.tensors, *call.tree, *call.options.values()
        grad = torch.ones_like(found[0])
        alone = getattr(backend.library, f'{name}_backward')(grad, *arguments)
        alone = [x for x, tensor in zip(alone, call.tensors, strict=True) if tensor is not None]
        cases.assert_same(getattr(backend.library, name)(*arguments), found[0])
        cases.assert_same(getattr(backend.library, name)(*arguments, shifted), found[0])
        cases.assert_same(alone, gradients)
        with pytest.raises(
            RuntimeError, match=f'{name}: decomposition needs the result of heavy_light, shape'
        ):
            getattr(backend.library, name)(*arguments, given[:, 1:])


@pytest.mark.devices('emulated', 'cuda')
@pytest.mark.parametrize('form', SCANS)
def test_a_decomposition_that_heavy_light_did_not_make_of_as_many_trees_gives_nan(backend, form):
    for grid in ((5, 8), (9, 11)):
        call = cases.make(form, 2, *grid, 5).to(backend.device)
        name = call.name
        arguments = *call.tensors, *call.tree, *call.options.values()
        scan, backward = (getattr(backend.library, each) for each in (name, f'{name}_backward'))
        made = backend.library.heavy_light(*call.tree, name)
        one = backend.library.heavy_light(*(part[:1].contiguous() for part in call.tree), name)
        for wrong in (
            made * 0,
            made * 0 - 1,
            torch.randint_like(made, 2**31 - 1),
            made.flip(0),
            one.expand_as(made),
        ):
            found = scan(*arguments, wrong), *backward(call.tensors[0], *arguments, wrong)
            assert all(each.isnan().all() for each in found)


@emulated
def test_a_decomposition_for_the_grid_is_not_read_by_blocks(backend, monkeypatch):
    call = cases.make('tree_scan both', 2, 5, 8, 5)
    with monkeypatch.context() as patch:
        patch.setenv('GROOTV_SHARED_BYTES', '1000')
        made = backend.library.heavy_light(*call.tree, 'tree_scan')
    assert backend.library.tree_scan(*call.tensors, *call.tree, 'both', made).isnan().all()


@emulated
@not_sanitized
def test_blocks_of_a_device(backend):
    """The emulation with blocks of the size that a device has, for trees the whole grid, and a block each."""
    full_size = load('emulated full size')
    for batch, height, width in [(1, 64, 65), (2, 40, 40), (3, 7, 7)]:
        check_steps(full_size, cases.features('normal', batch, height, width, 16), 'cosine', 0)
        for form in SCANS:
            check(full_size, cases.make(form, batch, height, width, 5))


@emulated
@not_sanitized
def test_sums_of_a_whole_block_keep_their_digits(backend):
    test_scan.test_sums_over_many_vertices_keep_their_digits(load('emulated full size'))


@emulated
@not_sanitized
def test_sums_beyond_the_shared_memory(backend, monkeypatch):
    """Where a block has no room for those of a backward pass, the grid takes both passes."""
    monkeypatch.setenv('GROOTV_SHARED_BYTES', str(99 << 10))
    check(load('emulated full size'), cases.tree_scan(cases.spanning_tree(1, 64, 64), 12))


@emulated
def test_states_beyond_the_shared_memory(backend, monkeypatch):
    monkeypatch.setenv('GROOTV_SHARED_BYTES', '40000')
    for kind in ('published', 'binary'):
        check(backend, cases.token_scan(cases.token_tree(kind, 2, 70), 5, 20, torch.float64))


@emulated
def test_token_trees_wait_for_no_device(backend, monkeypatch):
    monkeypatch.setenv('GROOTV_NO_WAIT', '1')
    normal = cases.random(70)
    x, B, context = normal(2, 70, 5), normal(2, 70, 3), torch.tensor([[0, 70], [9, 40]])
    for causal in (False, True):
        found = backend.ops.token_tree(x, B, context, causal=causal)
        cases.assert_same(found, ops.token_tree(x, B, context, causal=causal))


@emulated
def test_wrong_edges_leave_gaps_where_nothing_waits_for_them(backend, monkeypatch):
    monkeypatch.setenv('GROOTV_NO_WAIT', '1')
    edges, weight = grid_edges(3, 4).int().unsqueeze(0), torch.rand(1, 17)
    library = backend.library
    tree_edges = library.minimum_spanning_tree_from_edges(edges.clamp(max=10), weight, 12, False)
    assert (tree_edges == -1).any()
    for part in library.breadth_first_order_from_edges(edges, tree_edges, 12, 0, False):
        assert (part == -1).any()


@emulated
@pytest.mark.parametrize(('height', 'width'), [(4, 5), (9, 11)])
def test_a_wrong_item_leaves_the_others_alone_during_a_capture(backend, monkeypatch, height, width):
    monkeypatch.setenv('GROOTV_CAPTURE', '1')
    functions, vertices = backend.ops, height * width
    weight = torch.rand(3, 2 * vertices - height - width)
    tree_edges = ops.minimum_spanning_tree(weight, height, width)
    edges = grid_edges(height, width).int().expand(3, -1, 2).clone()
    edges[1] = edges[1].clamp(max=vertices - 3)  # two vertices are joined to nothing
    found = functions.minimum_spanning_tree_from_edges(edges, weight, vertices)
    assert torch.equal(found[::2], tree_edges[::2])
    assert (found[1] == -1).any()
    wrong = tree_edges.clone()
    wrong[1, 0] = wrong[1, 1]
    tree = ops.breadth_first_order(tree_edges, height, width)
    signal = torch.rand(3, vertices, 2)
    for found in (
        functions.breadth_first_order(wrong, height, width, 0),
        functions.breadth_first_order_from_edges(edges[:1], wrong, vertices, 0),
    ):
        cases.assert_same([part[::2] for part in found], [part[::2] for part in tree])
        assert (found[0][1] == -1).any()
        h = functions.tree_scan(signal, signal, found)
        assert h[1].isnan().all()
        cases.assert_close(h[::2], ops.tree_scan(signal.double(), signal.double(), tree)[::2])


@pytest.mark.devices('emulated', 'cuda')
def test_a_batch_beyond_the_limit_is_refused(backend):
    maps = torch.ones(1, 1, 1, 1, device=backend.device).expand(1 << 20, 1 << 5, 1 << 5, 1)
    sentence = r'build_tree: a batch on a CUDA device must have at most 2.29 vertices'
    with pytest.raises(RuntimeError, match=sentence):
        backend.ops.build_tree(maps)


def replayed(function, inputs: list):
    """Capture a call with the first inputs; yield replays with the others and direct calls."""
    static = [x.clone() for x in inputs[0]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*static)
    for fresh in inputs[1:]:
        for target, source in zip(static, fresh, strict=True):
            target.copy_(source)
        graph.replay()
        yield [x.clone() for x in results], function(*fresh)


def trees(x, B, context):
    """Every way to a tree, of maps (B, H, W, C) and of their vertices as tokens."""
    height, width = x.shape[1:3]
    weight = ops.grid_edge_weight(x)
    tree_edges = ops.minimum_spanning_tree(weight, height, width)
    grown = [ops.token_tree(x.flatten(1, 2), B, context, causal=causal) for causal in (False, True)]
    return weight, tree_edges, *ops.build_tree(x), *(part for tree in grown for part in tree)


@cuda
@pytest.mark.parametrize(('height', 'width'), [(7, 7), (56, 56), (128, 130)])
def test_operators_are_captured_in_a_cuda_graph(backend, height, width):
    context = torch.tensor([[0, 40], [9, height * width]], device='cuda')

    def maps():
        x, B = torch.randn(2, height, width, 16), torch.randn(2, height * width, 4)
        return [x.cuda(), B.cuda(), context]

    for found, expected in replayed(trees, [maps() for _ in range(4)]):
        cases.assert_same(found, expected)
    for form in OPERATORS:
        call = cases.make(form, 2, height, width, 16, states=16).to('cuda')

        def step(*tensors, call=call):
            return [x for part in call.fill(tensors).with_gradients(ops) for x in part]

        inputs = [call.map(lambda x, i=i: x.roll(i)).given() for i in range(4)]
        for found, expected in replayed(step, inputs):
            cases.assert_same(found, expected)


@cuda
def test_operators_run_on_the_current_stream(backend):
    call = cases.make('selective_tree_scan', 2, 56, 56, 80).to('cuda')
    expected = call.with_gradients(ops)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = call.map(lambda x: torch.cuda._sleep(10_000_000) or x.clone())  # on this stream alone
        found = late.with_gradients(ops)
    stream.synchronize()
    for ours, theirs in zip(found, expected, strict=True):
        cases.assert_same(ours, theirs)
