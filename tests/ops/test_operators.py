"""What PyTorch expects of operators: schemas, fake kernels, autograd, autocast, compilation, loading."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grootv import ops
from grootv.ops import grid_graph
from tests.ops.cases import features, scan_inputs

CHECKS = (
    'test_schema',
    'test_autograd_registration',
    'test_faketensor',
    'test_aot_dispatch_dynamic',
)


def operator_calls():
    maps = features('normal', 2, 3, 4, 5)
    weights = ops.grid_edge_weight(maps)
    tree_edges = ops.minimum_spanning_tree(weights, 3, 4)
    edges = grid_graph.grid_edges(3, 4).unsqueeze(0)
    signal, decay, tree = scan_inputs(2, 3, 4, 5)
    trained = signal.requires_grad_(), decay.requires_grad_()
    fixed = signal.detach(), decay.detach()
    rate, write, bias = torch.rand(5).neg(), torch.rand(2, 12), torch.rand(5)
    selected = *trained, *(tensor.requires_grad_() for tensor in (rate, write, bias))
    selected_fixed = *fixed, *(tensor.detach() for tensor in (rate, write, bias))
    vectors = [torch.randn(5) for _ in range(5)]
    read_out = fixed[0], torch.randn(2, 12), fixed[1], vectors[0], torch.randn(2, 12, 5), *vectors[1:]
    tokens, states = signal.detach()[:, :6], torch.randn(2, 6, 3)
    context, chain = torch.tensor([[0, 6], [1, 4]], dtype=torch.int32), ops.token_chain(2, 6)[:2]
    sequence = tokens, tokens.clone(), -torch.rand(5, 3), states, states.clone(), torch.rand(5)
    return {
        'grid_edge_weight': (maps, 'cosine'),
        'minimum_spanning_tree': (weights, 3, 4),
        'minimum_spanning_tree_from_edges': (edges, weights, 12),
        'breadth_first_order': (tree_edges, 3, 4, 0),
        'breadth_first_order_from_edges': (edges, tree_edges, 12, 0),
        'build_tree': (maps, 'cosine', 0),
        'tree_scan': (*trained, *tree, 'both'),
        'tree_scan_backward': (torch.randn(2, 12, 5), *fixed, *tree, 'both'),
        'selective_tree_scan': (*selected, *tree, True),
        'selective_tree_scan without bias': (*selected[:4], None, *tree, False),
        'selective_tree_scan_backward': (torch.randn(2, 12, 5), *selected_fixed, *tree, True),
        'token_edge_weight': (tokens, states, context, 3),
        'token_scan': (*(tensor.clone().requires_grad_() for tensor in sequence), *chain, True),
        'token_scan without bias': (*sequence[:5], None, *chain, False),
        'token_scan_backward': (torch.randn(2, 6, 5), torch.randn(2, 5, 3), *sequence, *chain, True),
        'gated_read_out': (*(tensor.clone().requires_grad_() for tensor in read_out), 1e-5),
        'gated_read_out_backward': (torch.randn(2, 12, 5), *read_out, 1e-5),
    }


@pytest.mark.parametrize('name', operator_calls())
def test_opcheck(name):
    operator = getattr(torch.ops.grootv, name.split()[0]).default
    torch.library.opcheck(operator, operator_calls()[name], test_utils=CHECKS)


def test_every_operator_is_checked():
    names = torch._C._dispatch_get_all_op_names()
    ours = {name.removeprefix('grootv::') for name in names if name.startswith('grootv::')}
    assert ours == {name.split()[0] for name in operator_calls()}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_scans_in_float32(dtype):
    signal, decay, tree = scan_inputs(1, 4, 4, 3)
    with torch.autocast('cpu', dtype):
        found = ops.tree_scan(signal.to(dtype), decay.to(dtype), tree)
        double = ops.tree_scan(signal.double(), decay.double(), tree)
    assert found.dtype == torch.float32
    assert double.dtype == torch.float64
    rounded = signal.to(dtype).float(), decay.to(dtype).float()
    assert torch.equal(found, ops.tree_scan(*rounded, tree))


def block(maps, decay):
    batch, height, width, channels = maps.shape
    tree = ops.build_tree(maps)
    signal = maps.view(batch, height * width, channels)
    return ops.tree_scan(signal * 2, decay.sigmoid(), tree) + 1


def test_compiles_without_a_graph_break_for_any_size():
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend='aot_eager')
    for height, width in ((4, 4), (5, 3), (2, 9)):
        maps = features('normal', 2, height, width, 6).requires_grad_()
        decay = torch.randn(2, height * width, 6, requires_grad=True)
        found, expected = compiled(maps, decay), block(maps, decay)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(h.sum(), (maps, decay)) for h in (found, expected)]
        torch.testing.assert_close(*grads)


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


def test_other_devices_and_shapes_are_refused_before_any_kernel():
    signal, decay, tree = scan_inputs(2, 3, 4, 5)
    for name in tree._fields:
        moved = tree._replace(**{name: getattr(tree, name).to('meta')})
        with pytest.raises(RuntimeError, match=f'tree_scan: all tensors must be on one device, but {name}'):
            ops.tree_scan(signal, decay, moved)
    meta = ops.Tree(*(field.to('meta') for field in tree))
    with pytest.raises(RuntimeError, match=r'decay needs .*, shape \(2, 12, 5\), got \(2, 12, 4\)'):
        ops.tree_scan(signal.to('meta'), decay[..., :4].to('meta'), meta)
    with pytest.raises(RuntimeError, match=r'shape \(1, 110\), got \(1, 4\)'):
        ops.minimum_spanning_tree(torch.ones(1, 4, device='meta'), 7, 9)
    with pytest.raises(RuntimeError, match='but edge_weight is on another'):
        edges = grid_graph.grid_edges(3, 4)
        ops.minimum_spanning_tree_from_edges(edges, torch.ones(1, 17, device='meta'), 12)


def test_running_out_of_memory_is_told_and_survived():
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
    code = 'import sys, grootv, grootv.ops; print("mmengine" in sys.modules, "timm" in sys.modules)'
    assert run(code).stdout.strip() == 'False False'


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
    for name in {call.split()[0] for call in operator_calls()}:
        assert (
            'csrc/cuda/' in torch._C._dispatch_dump(f'grootv::{name}').partition('\nCUDA:')[2].splitlines()[0]
        )
