"""What PyTorch expects of operators: schemas, fake kernels, autograd, autocast, compilation, loading."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from grootv import ops
from grootv.ops import grid_graph
from tests.ops.cases import FORMS, assert_same, features, make

CHECKS = ('test_schema', 'test_autograd_registration', 'test_faketensor', 'test_aot_dispatch_dynamic')


def backward_of(call: str) -> str:
    name, *kind = call.split(' ', 1)
    return ' '.join([f'{name}_backward', *kind])


def operator_calls(device: str = 'cpu') -> dict[str, tuple]:
    """Arguments of every operator, by its name and a word where there are several."""
    maps = features('normal', 2, 3, 4, 5)
    weights = ops.grid_edge_weight(maps)
    tree_edges = ops.minimum_spanning_tree(weights, 3, 4)
    edges = grid_graph.grid_edges(3, 4).unsqueeze(0)
    tokens, states = torch.randn(2, 6, 5), torch.randn(2, 6, 3)
    context = torch.tensor([[0, 6], [1, 4]], dtype=torch.int32)
    calls = {
        'grid_edge_weight': (maps, 'cosine'),
        'minimum_spanning_tree': (weights, 3, 4),
        'minimum_spanning_tree_from_edges': (edges, weights, 12),
        'breadth_first_order': (tree_edges, 3, 4, 0),
        'breadth_first_order_from_edges': (edges, tree_edges, 12, 0),
        'build_tree': (maps, 'cosine', 0),
        'heavy_light': (*ops.build_tree(maps), 'tree_scan'),
        'token_edge_weight': (tokens, states, context, 3),
    }
    for form in ('tree_scan both', *FORMS[2:9], 'token_scan plain', *FORMS[-3:]):
        call = make(form, 2, 3, 4, 5)
        fixed = *call.tensors, *(call.tree or ()), *call.options.values()
        calls[form] = *call.trained().tensors, *(call.tree or ()), *call.options.values()
        calls[backward_of(form)] = *map(torch.randn_like, call(ops)), *fixed
    move = lambda x: x.detach().to(device).requires_grad_(x.requires_grad)  # noqa: E731
    return tree_map_only(torch.Tensor, move, calls)


@pytest.mark.parametrize('name', operator_calls())
def test_opcheck(backend, name):
    operator = getattr(backend.library, name.split()[0]).default
    checks = CHECKS[:-1] if name == 'heavy_light' else CHECKS  # the ends of its lists are not written
    torch.library.opcheck(operator, operator_calls(backend.device)[name], test_utils=checks)


def test_every_operator_is_checked():
    names = torch._C._dispatch_get_all_op_names()
    own = {name.removeprefix('grootv::') for name in names if name.startswith('grootv::')}
    assert own == {name.split()[0] for name in operator_calls()}


def test_flop_counter_counts_the_operators(backend):
    """Two for every multiply-add, backward twice as many as forward."""
    calls = operator_calls(backend.device)
    rows, edges = 2 * 12 * 5, 2 * 17 * 5
    multiply_adds = {'tree_scan both': 3 * rows, 'selective_tree_scan': 9 * rows, 'gated_read_out': 13 * rows}
    multiply_adds |= {'selective_tree_scan with distance': 10 * rows}
    multiply_adds |= {'token_scan chain': 9 * rows * 3, 'tree_scan up': rows, 'build_tree': edges + rows}
    multiply_adds |= {'grid_edge_weight': edges + rows, 'grid_edge_weight manhattan': edges}
    multiply_adds |= {'tree_edge_distance manhattan': rows, 'tree_edge_distance cosine': 2 * rows}
    calls['tree_scan up'] = *calls['tree_scan both'][:-1], 'up'
    calls['grid_edge_weight manhattan'] = calls['grid_edge_weight'][0], 'manhattan'
    multiply_adds |= {
        backward_of(call): 2 * n for call, n in multiply_adds.items() if backward_of(call) in calls
    }
    for call, expected in multiply_adds.items():
        with FlopCounterMode(display=False) as counter:
            getattr(backend.library, call.split()[0])(*calls[call])
        assert counter.get_total_flops() == 2 * expected, call


def test_distances_in_a_compiled_function(backend):
    call, results = make('tree_edge_distance cosine', 2, 3, 4, 5).to(backend.device), []

    def step(rows, *tree):
        return (backend.ops.tree_edge_distance(rows * 2, ops.Tree(*tree)) + 1).square()

    for function in (step, torch.compile(step, fullgraph=True, backend='aot_eager')):
        (rows,) = call.trained().tensors
        result = function(rows, *call.tree)
        results.append((result.detach(), *torch.autograd.grad(result.sum(), rows)))
    assert_same(*results)


def test_shapes_are_refused_before_any_kernel():
    call = make('tree_scan both', 2, 3, 4, 5).to('meta')
    signal, decay = call.tensors
    with pytest.raises(RuntimeError, match=r'decay needs .*, shape \(2, 12, 5\), got \(2, 12, 4\)'):
        ops.tree_scan(signal, decay[..., :4], call.tree)
    with pytest.raises(RuntimeError, match=r'input must have shape \(B, L, C\), got \(24, 5\)'):
        ops.tree_scan(signal.flatten(0, 1), decay, call.tree)
    with pytest.raises(RuntimeError, match=r'shape \(1, 110\), got \(1, 4\)'):
        ops.minimum_spanning_tree(torch.ones(1, 4, device='meta'), 7, 9)
    with pytest.raises(RuntimeError, match='all tensors must be on one device, but ed'):
        edges = grid_graph.grid_edges(3, 4)
        ops.minimum_spanning_tree_from_edges(edges, torch.ones(1, 17, device='meta'), 12)


def test_a_process_imports_little_and_survives_running_out_of_memory():
    code = """
import resource, sys, torch
from grootv import ops
assert not {'mmengine', 'timm'} & {*sys.modules}
expected = ops.build_tree(torch.ones(1, 9, 9, 4))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
count = 20_000_000
edges = torch.tensor([[0, 1]], dtype=torch.int32).expand(count, 2).contiguous()
weight = torch.zeros(1, count)
used += 12 * count
resource.setrlimit(resource.RLIMIT_AS, (used + 10 * count, used + 10 * count))
try:
    ops.minimum_spanning_tree_from_edges(edges, weight, 2)
except RuntimeError as error:
    print(error)
for _ in range(3):
    found = ops.build_tree(torch.ones(1, 9, 9, 4))
    assert all(map(torch.equal, found, expected))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout == 'minimum_spanning_tree_from_edges: out of memory\n', result.stderr
    assert result.returncode == 0


CALL = 'ops.build_tree(torch.rand(1, 2, 2, 1))'
CALL_ON_CUDA = """
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
torch.ops.grootv.build_tree.default.redispatch(cuda, torch.rand(1, 2, 2, 1), "cosine", 0)
"""


@pytest.mark.parametrize(
    ('exists', 'load', 'call', 'sentence'),
    [
        (
            'path.name != "_cpu.so" and old(path)',
            'path',
            CALL,
            'build_tree needs the compiled library: _cpu.so',
        ),
        ('path.name != "_cuda.so" and old(path)', 'path', CALL_ON_CUDA, '_cuda.so is not in'),
        ('True', 'path if path.name == "_cpu.so" else __file__', CALL_ON_CUDA, 'does not load'),
    ],
    ids=['no CPU library', 'no CUDA library', 'one of another torch'],
)
def test_a_library_that_is_not_there_or_does_not_fit_explains_itself(tmp_path, exists, load, call, sentence):
    if call == CALL_ON_CUDA and not torch.version.cuda:
        pytest.skip('a CPU build of torch')
    script = tmp_path / 'script.py'
    script.write_text(f"""
import pathlib, torch
old, load = pathlib.Path.exists, torch.ops.load_library
pathlib.Path.exists = lambda path: {exists}
torch.ops.load_library = lambda path: load({load})
import grootv.ops as ops, grootv.ops.reference
grootv.ops.reference.build_tree(torch.rand(1, 2, 2, 1))
print(1)
{call}""")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert result.stdout == '1\n', 'neither importing nor the reference fails'
    assert call == CALL or 'build_tree on a CUDA tensor needs the CUDA library: ' in last
    assert sentence in last and 'pip install' in last


def test_the_cuda_library_resolves_every_symbol():
    """A CUDA build of torch loads it without a GPU."""
    library = Path(ops.__file__).with_name('_cuda.so')
    if not torch.version.cuda or not library.exists():
        pytest.skip('no CUDA build of torch, or no CUDA library')
    for name in {call.split()[0] for call in operator_calls()}:
        assert (
            'csrc/cuda/' in torch._C._dispatch_dump(f'grootv::{name}').partition('\nCUDA:')[2].splitlines()[0]
        )
