"""Peak memory of a call, in a process of its own.

On the CPU: the greatest resident memory during a call that is not the first one, less the pages of files
(libraries) and less what the process held before the network was built. Weights, gradients, the
optimizer's state, activations and the scratch memory of every library count; Python and the libraries do
not. The C library gives freed blocks back at once: what it keeps of them otherwise, a fifth of a training
step and more, differs from run to run. On a GPU: the most that PyTorch's allocator had given away.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

CALLS = 2  # that are watched
GIVE_BACK = {'MALLOC_MMAP_THRESHOLD_': str(2**18)}  # bytes from which on a block is given back; glibc's


class NotMeasured(Exception):
    """Why there is no figure."""


def peak_memory(kind: str, device: str, threads: int, **what) -> int:
    """Bytes at the peak of a call.

    Args:
        kind: A key of ``MAKERS``.
        device: 'cpu' or 'cuda'.
        threads: Of PyTorch.
        what: The arguments of the maker, as JSON can hold them.

    Raises:
        NotMeasured: If the child process did not come to its end, or does not run on Linux.
    """
    request = json.dumps(dict(kind=kind, device=device, threads=threads, what=what))
    command = [sys.executable, __file__, request]
    child = subprocess.run(command, env=os.environ | GIVE_BACK, capture_output=True, text=True)
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        said = (child.stderr.strip().splitlines() or [f'ended with status {child.returncode}'])[-1]
        raise NotMeasured(said if child.returncode > 0 else f'ended by signal {-child.returncode}')
    return int(lines[-1])


def measure(call: Callable[[], object], device: str, before: int) -> int:
    """Bytes at the peak of a call that has run once, beyond the bytes ``before``."""
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    for _ in range(CALLS):
        call()
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() - before
    held = status()
    return held['VmHWM'] - held['RssFile'] - held['RssShmem'] - before


def held_now(device: str) -> int:
    """What the process holds, once everything unused is given back."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)
    return torch.cuda.memory_allocated() if device == 'cuda' else status()['RssAnon']


def status() -> dict[str, int]:
    """Bytes by the names of Linux's /proc/self/status."""
    lines = (line.split() for line in Path('/proc/self/status').read_text().splitlines())
    return {words[0].rstrip(':'): int(words[1]) * 1024 for words in lines if words[-1] == 'kB'}


def reset_peak() -> None:
    """Let the kernel forget the peak so far: VmHWM starts again from what is resident now."""
    Path('/proc/self/clear_refs').write_text('5')


def network_call(device: str, network: dict, setting: dict, batch: int, dtype: str, mode: str):
    from measuring import models

    network, setting = models.Network(**network), models.Setting(device, **setting)
    models.import_packages(network)

    def make() -> Callable[[], object]:
        runs = models.Runs(models.build(network, setting), setting, batch, dtype)
        call, prepare = runs.call(mode)
        return lambda: (prepare and prepare(0), call(0))

    return make


def mixer_call(device: str, name: str, channels: int, side: int, mode: str):
    from measuring.mixers import MixerRuns

    def make() -> Callable[[], object]:
        call = MixerRuns(device, name, channels, side).call(mode)
        return lambda: call(0)

    return make


# Each imports what it needs and returns what builds the thing and returns its call.
MAKERS = {'network': network_call, 'mixer': mixer_call}


def main() -> None:
    request = json.loads(sys.argv[1])
    device = request['device']
    torch.set_num_threads(request['threads'])
    make = MAKERS[request['kind']](device, **request['what'])
    # What Python imports at the first step of any network is not this network's.
    from measuring import models

    small = models.Setting(device, 32)
    models.Runs(models.build(models.Network('arch', 'pico'), small), small, 2, 'float32').step(0)
    before = held_now(device)
    print(measure(make(), device, before))


if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
