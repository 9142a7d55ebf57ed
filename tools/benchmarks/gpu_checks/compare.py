"""Results of two devices compared: exactly, or by the norm of their difference."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .report import Report, sentence

# norm(found - expected) / norm(expected), expected in float64 on the CPU: (result, gradient), by the dtype
# of what is compared. Half types: one rounding of the result, at most 2^-11 and 2^-8 of each value, plus
# float32 sums. Float32: sums over thousands of vertices with decays near 1, of which a star's are the worst
# (2e-6 by the CPU's kernels); the gradient of a decay is a product of two such sums.
LIMITS = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (5e-6, 2e-5),
    torch.float16: (5e-4, 5e-4),
    torch.bfloat16: (4e-3, 4e-3),
}
# A captured block beside the same block run at once: the kernels are the same.
CAPTURE_LIMIT = 1e-5
# Mean loss of the last five of 30 steps over that of the first five.
LOSS_LIMIT = 0.8


def same(found: Tensor, expected: Tensor) -> bool:
    """Same shape, dtype and bits, but any NaN equals any other."""
    found = found.to(expected.device)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """norm(found - expected) / norm(expected) in float64; 0 for two zeros and for nothing at all."""
    expected = expected.double().cpu()
    difference = (found.double().cpu() - expected).norm().item()
    scale = expected.norm().item()
    return difference / scale if scale > 0 else difference


@dataclass
class Entry:
    unit: str
    limit: float
    cases: int = 0
    value: float = 0.0
    worst: str = ''
    failed: list[str] = field(default_factory=list)


class Tally:
    """Comparisons of many cases, added up under the name of what they check."""

    def __init__(self):
        self.entries: dict[str, Entry] = {}

    def exact(self, name: str, case: str, found, expected) -> None:
        """Tensors, or tuples of them, with the same bits."""
        entry = self.entry(f'{name}, exact', 'cases differ', 0)
        entry.cases += 1
        pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
        if not all(same(ours, theirs) for ours, theirs in pairs):
            self.fail(entry, case)

    def close(self, name: str, case: str, found: Tensor, expected: Tensor, gradient: bool = False) -> None:
        """A result within its dtype's limit of the one in float64."""
        limit = LIMITS[found.dtype][gradient]
        dtype = str(found.dtype).removeprefix('torch.')
        entry = self.entry(f'{name}, {dtype}', 'relative error', limit)
        entry.cases += 1
        if found.shape != expected.shape:
            entry.value = float('inf')
            entry.failed.append(f'{case}: shape {tuple(found.shape)}, not {tuple(expected.shape)}')
            return
        error = relative_error(found, expected)
        if not error <= limit:
            entry.failed.append(f'{case}: {error:.2g}')
        if not error <= entry.value:  # NaN as well
            entry.value, entry.worst = error, case

    def holds(self, name: str, case: str, holds: bool, found: object = '') -> None:
        """A plain statement about a case."""
        entry = self.entry(name, 'cases fail', 0)
        entry.cases += 1
        if not holds:
            self.fail(entry, f'{case}: {found}' if found else case)

    @contextmanager
    def case(self, name: str, case: str) -> Iterator[None]:
        """An error inside is a failure of this case, not the end of the others."""
        entry = self.entry(f'{name}, runs', 'cases fail', 0)
        entry.cases += 1
        try:
            yield
        except Exception as error:
            self.fail(entry, f'{case}: {sentence(error)}')

    def entry(self, name: str, unit: str, limit: float) -> Entry:
        return self.entries.setdefault(name, Entry(unit, limit))

    def fail(self, entry: Entry, case: str) -> None:
        entry.value += 1
        entry.failed.append(case)

    def report(self, report: Report) -> None:
        """Hand everything over and start anew."""
        for name, entry in self.entries.items():
            shown = '; '.join(entry.failed[:5]) + (' ...' if len(entry.failed) > 5 else '')
            worst = shown or (f'worst: {entry.worst}' if entry.worst else '')
            note = f'{entry.cases} cases' + (f'; {worst}' if worst else '')
            report.check(name, entry.value, entry.unit, entry.limit, note)
        self.entries = {}


def keep_strides(tensor: Tensor, device: str) -> Tensor:
    """Move a tensor and keep its layout; ``to`` would make some contiguous."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.to(device)
    moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if 0 in tensor.stride():
        kept = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
        moved[kept].copy_(tensor[kept])
        return moved
    return moved.copy_(tensor)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that PyTorch hands out uninitialised holds NaN and the largest integers."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def twice(tally: Tally, name: str, case: str, call: Callable[[], tuple]) -> tuple:
    """The result of a call into poisoned memory; one into ordinary memory must give the same bits."""
    with poisoned_memory():
        first = call()
    tally.exact(f'{name}, same bits twice', case, call(), first)
    return first
