"""What the figures were measured on, and with what."""

import os
import platform
import sys
from pathlib import Path

import torch
from gpu_checks.environment import describe

VARIABLES = ('OMP_NUM_THREADS', 'GLIBC_TUNABLES', 'LD_PRELOAD')  # threads and allocator


def machine(device: str) -> dict:
    """Date, commit, versions, device, processor and memory; the command and what else sets the speed."""
    return {
        'command': ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **describe(device),
        'processor': processor(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'memory_bytes': memory(),
        'environment': {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def processor() -> str:
    """The processor as it names itself, and the vector instructions that PyTorch uses."""
    return f'{cpuinfo("model name") or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}'


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16."""
    flags = {*cpuinfo('flags').split(), *cpuinfo('Features').split()}
    return not flags.isdisjoint({'avx512_bf16', 'amx_bf16', 'bf16'})


def cpuinfo(key: str) -> str:
    """An entry of Linux's /proc/cpuinfo, empty where there is none."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(':')[2].strip() for line in lines if line.split(':')[0].strip() == key), '')


def memory() -> int:
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def available_memory(device: str) -> int:
    """Bytes that can still be taken, as the system estimates it."""
    if device == 'cuda':
        return torch.cuda.mem_get_info()[0]
    path = Path('/proc/meminfo')
    lines = path.read_text().splitlines() if path.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable')]
    return available[0] if available else memory()
