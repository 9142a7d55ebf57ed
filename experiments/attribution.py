"""Where the time of GrootV goes: what PyTorch's profiler sees, sorted into the parts of the network.

An operator belongs to the innermost part of the network that calls it; an operator of the backward pass to
the operator of the forward pass whose gradient it computes. The network itself is not touched.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

# Classes that are one part from beginning to end, and those whose operators are sorted by their names.
WHOLE = {'Stem': 'stem', 'Downsample': 'downsampling', 'MLP': 'MLP'}
PLACES = WHOLE | dict.fromkeys(('GrootV', 'Stage', 'Block', 'TreeSSM'), 'by name')
BY_NAME = {
    'projections': ('linear', 'matmul', 'addmm', 'mm', 'bmm', 'einsum'),
    'convolution': ('conv2d', 'convolution'),
    'norms': ('layer_norm', 'native_layer_norm'),
    'copies': ('to', '_to_copy', 'contiguous', 'clone', 'copy_'),
    'tree': ('build_tree', 'grid_edge_weight', 'minimum_spanning_tree', 'breadth_first_order'),
    'scan': ('tree_scan', 'selective_tree_scan'),
    'read-out': ('gated_read_out',),
}
PART_OF = {name: part for part, names in BY_NAME.items() for name in names}
PARTS = ('stem', 'downsampling', *BY_NAME, 'MLP', 'element-wise', 'head', 'loss', 'parameter gradients')
BETWEEN = 'between operators'
MARK = 'place: '
NODE = 'autograd::engine::evaluate_function: '


def time_shares(runs, backward: bool, calls: int) -> tuple[float, dict[str, float]]:
    """Seconds of one inference, or of one backward pass, and of its parts, which sum up to them.

    Args:
        runs: A ``Runs`` of benchmark_model.py.
        backward: Profile the backward pass of training in place of inference.
        calls: How many are profiled; the one of median length is returned.
    """
    runs.model.train(backward)
    with marked(runs.model):
        found = sorted((profiled(runs, backward) for _ in range(calls)), key=lambda found: found[0])
    seconds, parts = found[len(found) // 2]
    parts = {part: parts[part] for part in PARTS}
    return seconds, parts | {BETWEEN: seconds - sum(parts.values())}


def profiled(runs, backward: bool) -> tuple[float, Counter]:
    """Seconds of one call and of the operators of each part."""
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else it reports that it starts and stops
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (runs.device == 'cuda')
    wait = torch.cuda.synchronize if runs.device == 'cuda' else lambda: None
    with profile(activities=activities, acc_events=True) as profiler:
        with record_function('forward'):
            runs.loss() if backward else runs.forward()
            wait()
        if backward:
            with record_function('backward'):
                runs.error.backward()
                wait()
    events = profiler.events()
    whole = {event.name: event for event in events if event.name in ('forward', 'backward')}
    time = 'device_time_total' if runs.device == 'cuda' else 'cpu_time_total'

    def seconds(event: FunctionEvent) -> float:
        return getattr(event, time) / 1e6

    parts, part_of_node = Counter(), {}
    sort_forward(whole['forward'], 'loss', seconds, parts, part_of_node)
    if backward:
        parts = sort_backward(events, seconds, part_of_node)
    return whole['backward' if backward else 'forward'].cpu_time_total / 1e6, parts


def sort_forward(event: FunctionEvent, place: str, seconds: Callable, parts: Counter, nodes: dict) -> None:
    """Add up the operators below an event, and note which part each node of the autograd graph comes from."""
    for child in event.cpu_children:
        inside = child.name.removeprefix(MARK)
        if inside != child.name and inside not in WHOLE.values():
            sort_forward(child, inside, seconds, parts, nodes)
            continue
        if inside != child.name:
            part = inside
        elif place == 'by name':
            part = PART_OF.get(child.name.split('::')[-1], 'element-wise')
        else:
            part = place
        parts[part] += seconds(child)
        for inner in descendants(child):
            # Operators that make no node carry the number of the next one; the last to start makes it.
            nodes[inner.sequence_nr] = part


def sort_backward(events: list[FunctionEvent], seconds: Callable, nodes: dict[int, str]) -> Counter:
    parts = Counter()
    for event in events:
        if event.name.startswith(NODE):
            accumulates = event.name.endswith('AccumulateGrad')
            part = 'parameter gradients' if accumulates else nodes.get(event.sequence_nr, 'element-wise')
            parts[part] += seconds(event)
    return parts


def descendants(event: FunctionEvent) -> Iterator[FunctionEvent]:
    yield event
    for child in event.cpu_children:
        yield from descendants(child)


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Let the profiler see where the places of a network begin and end; what is in none is its head."""
    ranges, hooks = [], []

    def begin(place: str) -> Callable:
        def hook(*_) -> None:
            ranges.append(record_function(MARK + place))
            ranges[-1].__enter__()

        return hook

    def end(*_) -> None:
        ranges.pop().__exit__(None, None, None)

    for module in model.modules():
        place = 'head' if module is model else PLACES.get(type(module).__name__)
        if place is not None:
            hooks += [module.register_forward_pre_hook(begin(place)), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
