"""Medians of alternating calls, copies to compare with, and calls as CUDA graphs."""

import torch
from measuring import clock
from measuring.clock import Call

from .capture import captured
from .environment import Options


def medians(options: Options, calls: dict[str, Call], sets: int, budget: float = 0.5) -> dict[str, float]:
    """Median seconds of functions called in turn, each time with the next of ``sets`` input sets."""
    budget = 0.02 if options.dry_run else budget / 3 if options.quick else budget
    least = 3 if options.dry_run else 20
    limits = dict(budget=budget, least=least, most=300, sets=sets, warm_ups=max(sets, 3))
    return clock.medians(clock.take_turns(calls, options.device, **limits))


def as_graph(call: Call, sets: int) -> Call:
    """The same calls as CUDA graphs, one for each input set: no gaps between launches."""
    graphs = [captured(lambda index=index: call(index)) for index in range(sets)]
    return lambda index: graphs[index][0].replay()


def num_sets(options: Options, bytes_read: int) -> int:
    """Input sets that together are larger than three times the L2 cache."""
    if options.device != 'cuda':
        return 2
    cache = getattr(torch.cuda.get_device_properties(0), 'L2_cache_size', 0) or 64 * 2**20
    return min(max(2, -(-3 * cache // max(bytes_read, 1))), 64)


def copy_of(options: Options, traffic: int) -> Call:
    """A device copy that reads and writes ``traffic`` bytes together, as large buffers in rotation."""
    half = max(traffic // 2, 1)
    count = num_sets(options, half)
    buffers = [torch.empty(half, dtype=torch.uint8, device=options.device).zero_() for _ in range(2 * count)]
    state = iter(range(10**9))

    def copy(_: int) -> None:
        index = next(state) % count
        buffers[2 * index].copy_(buffers[2 * index + 1])

    return copy
