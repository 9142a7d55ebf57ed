"""What PyTorch expects of operators: schemas, fake kernels, autograd, autocast, compilation, loading."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from grootv import ops
from grootv.ops import grid_graph
from tests.ops.cases import FORMS, features, make

CHECKS = ('test_schema', 'test_autograd_registration', 'test_faketensor', 'test_aot_dispatch_dynamic')


def operator_calls(library, device: str = 'cpu') -> dict[str, tuple]:
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
        'token_edge_weight': (tokens, states, context, 3),
    }
    for form in ('tree_scan both', *FORMS[2:7], 'token_scan plain'):
        call = make(form, 2, 3, 4, 5)
        fixed = *call.tensors, *(call.tree or ()), *call.options.values()
        calls[form] = *call.trained().tensors, *(call.tree or ()), *call.options.values()
        calls[f'{call.name}_backward'] = *map(torch.randn_like, call(ops)), *fixed
    return {
        name: tuple(to_leaf(x, device) if isinstance(x, torch.Tensor) else x for x in arguments)
        for name, arguments in calls.items()
    }


def to_leaf(tensor: torch.Tensor, device: str) -> torch.Tensor:
    return tensor.detach().to(device).requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize('name', operator_calls(ops))
def test_opcheck(backend, name):
    operator = getattr(backend.library, name.split()[0]).default
    torch.library.opcheck(operator, operator_calls(ops, backend.device)[name], test_utils=CHECKS)


def test_every_operator_is_checked():
    names = torch._C._dispatch_get_all_op_names()
    own = {name.removeprefix('grootv::') for name in names if name.startswith('grootv::')}
    assert own == {name.split()[0] for name in operator_calls(ops)}


class Block(torch.nn.Module):
    """A tree, a scan along it and its read-out, of a map (B, H, W, C)."""

    def __init__(self, channels: int, library=ops):
        super().__init__()
        self.library = library
        self.project = torch.nn.Linear(channels, 2 * channels)
        self.delta = torch.nn.Linear(channels, channels)
        self.A = torch.nn.Parameter(torch.zeros(channels))
        self.D = torch.nn.Parameter(torch.ones(channels))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(channels) for _ in range(2))

    def forward(self, maps):
        tree = self.library.build_tree(maps)
        x, z = self.project(maps).flatten(1, 2).chunk(2, -1)
        B, C = x.mean(-1), z.mean(-1)
        h = self.library.selective_tree_scan(x, self.delta(x), -self.A.exp(), B, tree)
        norms = [(norm.weight, norm.bias) for norm in self.norms]
        y = self.library.gated_read_out(h, C.to(h), x.to(h), self.D, z, *norms)
        return y.view(maps.shape)


@pytest.mark.devices('cpu', 'cuda')
def test_compiles_without_a_graph_break_for_any_size(backend):
    block = Block(6, backend.ops).to(backend.device)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend='aot_eager')
    for height, width in ((4, 4), (5, 3), (2, 9)):
        maps = features('normal', 2, height, width, 6).to(backend.device).requires_grad_()
        found, expected = compiled(maps), block(maps)
        torch.testing.assert_close(found, expected)
        grads = [
            torch.autograd.grad(y.square().sum(), (maps, *block.parameters())) for y in (found, expected)
        ]
        torch.testing.assert_close(*grads)


def test_flop_counter_counts_the_operators(backend):
    """Two for every multiply-add, backward twice as many as forward."""

    def count(name, *arguments):
        with FlopCounterMode(display=False) as counter:
            getattr(backend.library, name)(*arguments)
        return counter.get_total_flops()

    calls = operator_calls(ops, backend.device)
    rows, edges = 2 * 12 * 5, 2 * 17 * 5
    multiply_adds = {'tree_scan both': 3 * rows, 'selective_tree_scan': 9 * rows, 'gated_read_out': 13 * rows}
    multiply_adds |= {'token_scan chain': 9 * rows * 3}
    for call, expected in multiply_adds.items():
        name = call.split()[0]
        assert count(name, *calls[call]) == 2 * expected
        assert count(f'{name}_backward', *calls[f'{name}_backward']) == 2 * 2 * expected
    assert count('tree_scan', *calls['tree_scan both'][:-1], 'up') == 2 * rows
    for name in ('grid_edge_weight', 'build_tree'):
        assert count(name, *calls[name]) == 2 * (edges + rows)
    assert count('grid_edge_weight', calls['grid_edge_weight'][0], 'manhattan') == 2 * edges


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


def test_shapes_are_refused_before_any_kernel():
    call = make('tree_scan both', 2, 3, 4, 5).to('meta')
    with pytest.raises(RuntimeError, match=r'decay needs .*, shape \(2, 12, 5\), got \(2, 12, 4\)'):
        ops.tree_scan(call.tensors[0], call.tensors[1][..., :4], call.tree)
    with pytest.raises(RuntimeError, match=r'input must have shape \(B, L, C\), got \(24, 5\)'):
        ops.tree_scan(call.tensors[0].flatten(0, 1), call.tensors[1], call.tree)
    with pytest.raises(RuntimeError, match=r'shape \(1, 110\), got \(1, 4\)'):
        ops.minimum_spanning_tree(torch.ones(1, 4, device='meta'), 7, 9)
    with pytest.raises(RuntimeError, match='all tensors must be on one device, but ed'):
        edges = grid_graph.grid_edges(3, 4)
        ops.minimum_spanning_tree_from_edges(edges, torch.ones(1, 17, device='meta'), 12)


def test_running_out_of_memory_is_reported_and_survived():
    code = (
        'import resource, torch\n'
        'from grootv import ops\n'
        'expected = ops.build_tree(torch.ones(1, 9, 9, 4))\n'
        'used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()\n'
        'count = 20_000_000\n'
        'edges = torch.tensor([[0, 1]], dtype=torch.int32).expand(count, 2).contiguous()\n'
        'weight = torch.zeros(1, count)\n'
        'used += 12 * count\n'
        'resource.setrlimit(resource.RLIMIT_AS, (used + 10 * count, used + 10 * count))\n'
        'try:\n'
        '    ops.minimum_spanning_tree_from_edges(edges, weight, 2)\n'
        'except RuntimeError as error:\n'
        '    print(error)\n'
        'for _ in range(3):\n'
        '    found = ops.build_tree(torch.ones(1, 9, 9, 4))\n'
        '    assert all(map(torch.equal, found, expected))\n'
    )
    result = run(code)
    assert result.stdout == 'minimum_spanning_tree_from_edges: out of memory\n', result.stderr
    assert result.returncode == 0


def test_import_is_light():
    code = 'import sys, grootv.ops; print({"mmengine", "timm"} & {*sys.modules})'
    assert run(code).stdout.strip() == 'set()'


def test_a_missing_library_explains_itself_at_the_first_call():
    code = (
        'import pathlib; exists = pathlib.Path.exists\n'
        'pathlib.Path.exists = lambda self: self.name != "_cpu.so" and exists(self)\n'
        'import torch, grootv.ops as ops, grootv.ops.reference as reference\n'
        'tree = reference.build_tree(torch.rand(1, 2, 2, 1))\n'
        'ops.build_tree(torch.rand(1, 2, 2, 1))'
    )
    result = run(code)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert 'grootv.ops.build_tree needs the compiled library: _cpu.so is not in' in last
    assert 'pip install' in last


CALL_ON_CUDA = (
    'import torch, grootv.ops as ops\n'
    'cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)\n'
    'torch.ops.grootv.build_tree.default.redispatch(cuda, torch.rand(1, 2, 2, 1), "cosine", 0)'
)


@pytest.mark.skipif(not torch.version.cuda, reason='a CPU build of torch')
@pytest.mark.parametrize(
    ('trouble', 'sentence'),
    [
        ('pathlib.Path.exists = lambda self: self.name != "_cuda.so" and exists(self)', '_cuda.so is not in'),
        (
            'pathlib.Path.exists = lambda self: True\n'
            'torch.ops.load_library = lambda path: load(path if path.name == "_cpu.so" else __file__)',
            'does not load',
        ),
    ],
)
def test_a_cuda_library_that_is_not_there_or_does_not_fit_explains_itself(tmp_path, trouble, sentence):
    prepare = 'import pathlib, torch; exists, load = pathlib.Path.exists, torch.ops.load_library\n'
    script = tmp_path / 'script.py'
    script.write_text(f'{prepare}{trouble}\nprint(1)\n{CALL_ON_CUDA}')
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert result.stdout == '1\n', 'importing does not fail'
    assert 'grootv.ops.build_tree on a CUDA tensor needs the CUDA library: ' in last
    assert sentence in last
    assert 'pip install' in last


def test_the_cuda_library_resolves_every_symbol():
    """A CUDA build of torch loads it without a GPU."""
    library = Path(ops.__file__).with_name('_cuda.so')
    if not torch.version.cuda or not library.exists():
        pytest.skip('no CUDA build of torch, or no CUDA library')
    for name in {call.split()[0] for call in operator_calls(ops)}:
        assert (
            'csrc/cuda/' in torch._C._dispatch_dump(f'grootv::{name}').partition('\nCUDA:')[2].splitlines()[0]
        )
