"""Medians of alternating calls."""

import statistics
import time
from collections.abc import Callable

import torch

from .capture import captured
from .environment import Options

Call = Callable[[int], object]  # of the number of the input set


def medians(options: Options, calls: dict[str, Call], sets: int, budget: float = 0.5) -> dict[str, float]:
    """Median seconds of functions called in turn, each time with the next of ``sets`` input sets."""
    budget = 0.02 if options.dry_run else budget / 3 if options.quick else budget
    for call in calls.values():
        for index in range(max(sets, 3)):
            call(index % sets)
    options.synchronize()
    start = time.perf_counter()
    for call in calls.values():
        call(0)
    options.synchronize()
    rounds = int(budget / max(time.perf_counter() - start, 1e-6))
    rounds = min(max(rounds, 3 if options.dry_run else 20), 300)
    clock = cuda_clock if options.device == 'cuda' else cpu_clock
    return {name: statistics.median(times) for name, times in clock(calls, sets, rounds).items()}


def cuda_clock(calls: dict[str, Call], sets: int, rounds: int) -> dict[str, list[float]]:
    """Seconds between events around each call; the host waits at the end only."""
    events = {name: [] for name in calls}
    for index in range(rounds):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call(index % sets)
            end.record()
            events[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: [begin.elapsed_time(end) / 1e3 for begin, end in pairs] for name, pairs in events.items()}


def cpu_clock(calls: dict[str, Call], sets: int, rounds: int) -> dict[str, list[float]]:
    times = {name: [] for name in calls}
    for index in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call(index % sets)
            times[name].append(time.perf_counter() - begin)
    return times


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
