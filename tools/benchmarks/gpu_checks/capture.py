"""CUDA graphs: every operator and a whole block, captured once and replayed with other inputs."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .compare import CAPTURE_LIMIT, Tally, relative_error, same
from .environment import NotHere, Options, import_network, import_ops
from .networks import seeded
from .operators import selective_scan
from .report import Report, sentence
from .tokens import random_scan, scan_with_gradients

ops = import_ops()


def run(options: Options, report: Report) -> None:
    if options.device != 'cuda':
        raise NotHere('CUDA graphs need a GPU')
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    tally = Tally()
    for grid in ((7, 7), (56, 56), (128, 130)):
        for name, (function, make) in operator_calls(*grid).items():
            with tally.case(f'capture {name}', f'{grid[0]}x{grid[1]}'):
                inputs = [make() for _ in range(4)]
                for found, expected in replayed(function, inputs):
                    tally.exact(f'capture {name}', f'{grid[0]}x{grid[1]}', found, expected)
    tally.report(report)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        capture_block(options, report, dtype)


def operator_calls(height: int, width: int) -> dict[str, tuple[Callable, Callable]]:
    """A function of tensors that returns tensors, and a maker of its inputs."""
    vertices, channels = height * width, 16
    tree = ops.build_tree(torch.randn(2, height, width, 4, device='cuda'))

    def maps():
        return (torch.randn(2, height, width, channels, device='cuda'),)

    def edge_weight():
        return (ops.grid_edge_weight(*maps()),)

    def signals():
        shape = (2, vertices, channels)
        return (
            torch.randn(shape, device='cuda'),
            torch.rand(shape, device='cuda'),
            torch.randn(shape, device='cuda'),
        )

    def selective():
        x, B = torch.randn(2, vertices, channels, device='cuda'), torch.randn(2, vertices, device='cuda')
        A, bias = -torch.rand(channels, device='cuda'), torch.rand(channels, device='cuda')
        return x, torch.randn_like(x), A, B, bias, torch.randn_like(x)

    def scan(u, a, grad):
        return forward_backward(lambda u, a: ops.tree_scan(u, a, tree), (u, a), grad)

    def selective_forward_backward(x, delta, A, B, bias, grad):
        def of(x, delta, A, B, bias):
            return selective_scan(x, delta, A, B, tree, bias)

        return forward_backward(of, (x, delta, A, B, bias), grad)

    calls = {
        'grid_edge_weight': (lambda x: (ops.grid_edge_weight(x),), maps),
        'minimum_spanning_tree': (lambda w: (ops.minimum_spanning_tree(w, height, width),), edge_weight),
        'build_tree': (lambda x: tuple(ops.build_tree(x)), maps),
        'tree_scan': (scan, signals),
    }
    context = torch.tensor([[0, vertices], [vertices // 3, vertices - 1]], device='cuda')

    def token_vectors():
        return torch.randn(2, vertices, channels, device='cuda'), torch.randn(2, vertices, 4, device='cuda')

    tokens = ops.token_tree(*token_vectors(), context)

    def token_signals():
        return tuple(itertools.chain(*random_scan(2, vertices, channels, 16, 'cuda')))

    calls |= {
        'token_tree': (lambda x, B: tuple(ops.token_tree(x, B, context)), token_vectors),
        'token_tree causal': (lambda x, B: tuple(ops.token_tree(x, B, context, causal=True)), token_vectors),
        'token_scan': (lambda *given: scan_with_gradients(given[:6], given[6:], tokens), token_signals),
    }
    if hasattr(ops, 'selective_tree_scan'):
        calls['selective_tree_scan'] = (selective_forward_backward, selective)
    return calls


def forward_backward(function: Callable, inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    result = function(*inputs)
    return result.detach(), *torch.autograd.grad(result, inputs, grad)


def replayed(function: Callable, inputs: list[tuple[Tensor, ...]]):
    """Capture a call with the first inputs; results of replays with the others, beside direct calls."""
    static = tuple(x.clone() for x in inputs[0])
    graph, results = captured(lambda: function(*static))
    for fresh in inputs[1:]:
        for target, source in zip(static, fresh, strict=True):
            target.copy_(source)
        graph.replay()
        found = tuple(x.clone() for x in results)
        yield found, function(*fresh)


def captured(call: Callable):
    """A CUDA graph of a call and the tensors that it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def capture_block(options: Options, report: Report, dtype: torch.dtype) -> None:
    """Forward and backward of LayerNorm, TreeSSM and MLP; in half types under autocast."""
    name = f'block forward and backward, replay, {str(dtype).removeprefix("torch.")}'
    block = seeded(options.seed, lambda: import_network().Block(80)).cuda()
    parameters = tuple(block.parameters())

    def step(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        # Casts of weights that autocast keeps would live in the graph's memory.
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32, cache_enabled=False):
            y = block(x)[0]
        return y.detach(), *torch.autograd.grad(y, (x, *parameters), grad)

    def inputs() -> tuple[Tensor, Tensor]:
        return torch.randn(2, 28, 28, 80, device='cuda'), torch.randn(2, 28, 28, 80, device='cuda')

    try:
        worst, bits = 0.0, True
        for found, expected in replayed(step, [inputs() for _ in range(4)]):
            pairs = list(zip(found, expected, strict=True))
            worst = max([worst, *(relative_error(ours, theirs) for ours, theirs in pairs)])
            bits = bits and all(same(ours, theirs) for ours, theirs in pairs)
        report.check(name, worst, 'relative error', CAPTURE_LIMIT, 'same bits' if bits else 'other bits')
    except Exception as error:
        report.missing(name, 'relative error', sentence(error), CAPTURE_LIMIT, failed=True)
