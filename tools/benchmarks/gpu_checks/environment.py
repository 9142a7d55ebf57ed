"""What the machine offers: the checkout made importable, versions, and how to skip what is missing."""

import datetime
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ('triton', 'timm', 'mmengine', 'mmpretrain', 'numpy')


class NotHere(Exception):
    """A section cannot run on this machine; the message says why."""


@dataclass
class Options:
    """What every section needs to know.

    Attributes:
        device: 'cuda', or 'cpu' in a dry run.
        quick: Fewer cases and shorter measurements.
        dry_run: Tiny sizes on the CPU; no speed is judged.
        seed: Of the random inputs.
        seconds: Time left to the section.
    """

    device: str = 'cuda'
    quick: bool = False
    dry_run: bool = False
    seed: int = 0
    seconds: float = 480.0
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def shrink(self, *sizes: int) -> tuple[int, ...]:
        """Sizes (batch, height, width, channels), made tiny in a dry run."""
        return tuple(map(min, sizes, (2, 9, 10, 8))) if self.dry_run else sizes


def import_ops() -> ModuleType:
    """``grootv.ops`` of this checkout, whether the distribution is installed or not.

    The distribution maps the package ``grootv.ops`` to the folder ``ops``; a bare checkout needs that said.
    """
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if 'grootv.ops' not in sys.modules and importlib.util.find_spec('grootv.ops') is None:
        folder = ROOT / 'ops'
        spec = importlib.util.spec_from_file_location(
            'grootv.ops', folder / '__init__.py', submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules['grootv.ops'] = module
        spec.loader.exec_module(module)
        importlib.import_module('grootv').ops = module
    return importlib.import_module('grootv.ops')


def import_network() -> ModuleType:
    """The module of the network; where MMEngine is missing, on stand-ins for its base class and registry."""
    import_ops()
    if optional('mmengine') is None:

        class BaseModule(torch.nn.Module):
            def __init__(self, init_cfg=None):
                super().__init__()

        engine, registry = ModuleType('mmengine.model'), ModuleType('grootv.registry')
        engine.BaseModule = BaseModule
        registry.MODELS = SimpleNamespace(register_module=lambda: lambda kind: kind)
        sys.modules |= {module.__name__: module for module in (ModuleType('mmengine'), engine, registry)}
    return importlib.import_module('grootv.models.backbones.grootv')


def optional(name: str) -> ModuleType | None:
    """A third-party package, None where it is missing or does not import."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        module = optional(name) if importlib.util.find_spec(name) else None
        return getattr(module, '__version__', None)


def describe(device: str) -> dict:
    """Date, commit, device, versions and the libraries' sizes in bytes."""
    return {
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'commit': commit(),
        'device': describe_device() if device == 'cuda' else {'name': 'cpu'},
        'versions': {
            'python': platform.python_version(),
            'torch': torch.__version__,
            'cuda': torch.version.cuda,
            **{name: version(name) for name in PACKAGES},
        },
        'libraries': {path.name: path.stat().st_size for path in sorted((ROOT / 'ops').glob('*.so'))},
    }


def describe_device() -> dict:
    properties = torch.cuda.get_device_properties(0)
    driver = output_of('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
    return {
        'name': properties.name,
        'compute_capability': f'{properties.major}.{properties.minor}',
        'memory_bytes': properties.total_memory,
        'multiprocessors': properties.multi_processor_count,
        'l2_bytes': getattr(properties, 'L2_cache_size', None),
        'driver': driver.splitlines()[0] if driver else 'unknown',
    }


def commit(root: Path = ROOT) -> str:
    """Of the checkout, with '-dirty' if tracked files other than results of measurements have changed."""
    name = output_of('git', '-C', str(root), 'describe', '--always')
    status = ['git', '-C', str(root), 'status', '--porcelain', '--untracked-files=no']
    changed = output_of(*status, '--', '.', ':!experiments/results')
    return (name or 'unknown') + ('-dirty' if changed else '')


def output_of(*command: str) -> str | None:
    """What a program prints, None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() or None if result.returncode == 0 else None
