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

from grootv import ops
from grootv.models.backbones.grootv import MLP, Block, Downsample, GrootV, Stage, Stem
from grootv.models.layers import TreeSSM

from .clock import medians, take_turns, wait
from .models import Runs
from .recorder import Recorder

TREE = ('edge weights', 'tree', 'order')
BETWEEN = 'between operators'
PARTS = (
    *('stem', 'downsampling', 'projections', 'convolution', *TREE, 'scan', 'read-out', 'norms', 'MLP'),
    *('element-wise', 'copies', 'head', 'loss', 'parameter gradients', BETWEEN),
)
# Modules that are one part from beginning to end, and those whose operators are sorted by their names.
WHOLE = {Stem: 'stem', Downsample: 'downsampling', MLP: 'MLP'}
PLACES = WHOLE | dict.fromkeys((GrootV, Stage, Block, TreeSSM), 'by name')
BY_NAME = {
    'projections': ('linear', 'matmul', 'addmm', 'mm', 'bmm', 'einsum'),
    'convolution': ('conv2d', 'convolution'),
    'norms': ('layer_norm', 'native_layer_norm'),
    'copies': ('to', '_to_copy', 'contiguous', 'clone', 'copy_'),
    'build_tree': ('build_tree',),  # all three steps of TREE
    'edge weights': ('grid_edge_weight',),
    'tree': ('minimum_spanning_tree',),
    'order': ('breadth_first_order',),
    'scan': ('tree_scan', 'selective_tree_scan'),
    'read-out': ('gated_read_out',),
}
PART_OF = {name: part for part, names in BY_NAME.items() for name in names}
MARK = 'place: '
NODE = 'autograd::engine::evaluate_function: '
CALLS = 5  # profiled; the one of median time is shown


def time_shares(runs: Runs, backward: bool = False, calls: int = CALLS) -> dict:
    """Seconds of the parts of one inference, or of one backward pass, and of the whole.

    Args:
        runs: Of a GrootV, with or without a head. Not compiled.
        backward: Profile the backward pass of training in place of inference.
        calls: How many are profiled. Parts and whole are those of the one of median length.

    Returns:
        ``parts``: seconds of each of ``PARTS``, which sum up to ``seconds``: the whole as profiled.
        ``unprofiled_seconds``: the median without the profiler.
    """
    mode = 'backward' if backward else 'forward'
    call, prepare = runs.call(mode)
    prepared = {} if prepare is None else {mode: prepare}
    plain = take_turns({mode: call}, runs.device, 0, calls, warm_ups=2, prepare=prepared)
    shares = tree_shares(runs)
    with marked(runs.model):
        found = sorted((profiled(runs, backward) for _ in range(calls)), key=lambda found: found[0])
    seconds, parts = found[len(found) // 2]
    build_tree = parts.pop('build_tree', 0.0)
    for step, share in shares.items():
        parts[step] += share * build_tree
    parts[BETWEEN] = seconds - sum(parts.values())
    return {
        'mode': mode,
        'seconds': seconds,
        'unprofiled_seconds': medians(plain)[mode],
        'parts': {part: parts[part] for part in PARTS},
    }


def profiled(runs: Runs, backward: bool) -> tuple[float, Counter]:
    """Seconds of one call and of the operators of each part."""
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else it tells that it starts and stops
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (runs.device == 'cuda')
    call = runs.loss if backward else runs.forward
    with profile(activities=activities, acc_events=True) as profiler:
        with record_function('forward'):
            call(0)
            wait(runs.device)
        if backward:
            with record_function('backward'):
                runs.backward(0)
                wait(runs.device)
    events = profiler.events()
    whole = {event.name: event for event in events if event.name in ('forward', 'backward')}
    seconds = duration_on_device if runs.device == 'cuda' else duration
    parts, part_of_node = Counter(), {}
    sort_forward(whole['forward'], 'loss', seconds, parts, part_of_node)
    if not backward:
        return duration(whole['forward']), parts
    return duration(whole['backward']), sort_backward(events, seconds, part_of_node)


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


def duration(event: FunctionEvent) -> float:
    return event.cpu_time_total / 1e6


def duration_on_device(event: FunctionEvent) -> float:
    return event.device_time_total / 1e6


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
        place = 'head' if module is model else PLACES.get(type(module))
        if place is not None:
            hooks += [module.register_forward_pre_hook(begin(place)), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def tree_shares(runs: Runs) -> dict[str, float]:
    """How ``build_tree`` divides into its steps: each alone, on the guides of a forward pass."""
    with Recorder() as recorder:
        runs.forward(0)
    guides = [arguments[:2] for name, _, arguments in recorder.calls if name == 'build_tree']
    if not guides:
        return dict.fromkeys(TREE, 0.0)
    with torch.inference_mode():
        weights = [ops.grid_edge_weight(*guide) for guide in guides]
        sizes = [guide.shape[1:3] for guide, _ in guides]
        edges = [ops.minimum_spanning_tree(w, *size) for w, size in zip(weights, sizes, strict=True)]
        calls = {
            'edge weights': lambda _: [ops.grid_edge_weight(*guide) for guide in guides],
            'tree': lambda _: [
                ops.minimum_spanning_tree(w, *size) for w, size in zip(weights, sizes, strict=True)
            ],
            'order': lambda _: [
                ops.breadth_first_order(e, *size) for e, size in zip(edges, sizes, strict=True)
            ],
        }
        seconds = medians(take_turns(calls, runs.device, 0.2))
    return {step: seconds[step] / sum(seconds.values()) for step in TREE}
