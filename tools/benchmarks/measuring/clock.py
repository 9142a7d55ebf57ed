"""Seconds of calls that take turns: the clock of every benchmark here."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Call = Callable[[int], object]  # of the number of the input set


def take_turns(
    calls: Mapping[str, Call],
    device: str,
    budget: float,
    least: int = 5,
    most: int = 10**6,
    sets: int = 1,
    warm_ups: int = 1,
    prepare: Mapping[str, Call] | None = None,
) -> dict[str, list[float]]:
    """Time functions in turn, so that whatever slows the machine down meets all of them.

    Args:
        calls: What to time, by name. Each is given the number of the next of ``sets`` input sets.
        device: 'cpu', or 'cuda': events around each call, and the host waits at the end only.
        budget: Seconds that all rounds may take together, by the time of a first one.
        least: Fewest rounds.
        most: Most rounds.
        sets: Number of input sets.
        warm_ups: Calls of each function before the first round.
        prepare: What to do, untimed, right before the call of the same name.

    Returns:
        Seconds of each call, by name, round by round.
    """
    stamp = event if device == 'cuda' else time.perf_counter

    def timed(name: str, index: int) -> tuple:
        call, index = calls[name], index % sets
        if prepare and name in prepare:
            prepare[name](index)
        begin = stamp()
        call(index)
        return begin, stamp()

    for name in calls:
        for index in range(warm_ups):
            timed(name, index)
    wait(device)
    start = time.perf_counter()
    for name in calls:
        timed(name, 0)
    wait(device)
    rounds = int(budget / max(time.perf_counter() - start, 1e-6))
    stamps = {name: [] for name in calls}
    for index in range(min(max(rounds, least), most)):
        for name in calls:
            stamps[name].append(timed(name, index))
    wait(device)
    return {name: [elapsed(*pair) for pair in pairs] for name, pairs in stamps.items()}


def event() -> torch.cuda.Event:
    """A mark in the work that the device has been given so far."""
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def elapsed(begin: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3


def wait(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def medians(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def percentile95(seconds: Sequence[float]) -> float:
    """The time that 19 of 20 calls stay below; of few calls the longest."""
    if len(seconds) < 20:
        return max(seconds)
    return statistics.quantiles(seconds, n=20, method='inclusive')[-1]


def beside(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The median of the rounds' quotients, and their quartiles.

    Both calls of a quotient stand next to each other in time: what slows the machine down for longer
    cancels.
    """
    quotients = [our / their for our, their in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(quotients, n=4, method='inclusive')
    return {'ratio': middle, 'low': low, 'high': high}
