"""Load the compiled operators, or explain why a build is missing or unusable."""

from pathlib import Path

import torch

_CPU, _CUDA, _ONNXRUNTIME = (
    Path(__file__).with_name(name) for name in ('_cpu.so', '_cuda.so', '_onnxruntime.so')
)
_BUILD = 'build it with `pip install --no-build-isolation -e .` in the checkout'


class _Missing:
    """Replaces ``torch.ops.grootv`` where the library cannot be loaded."""

    def __init__(self, reason: str):
        self._reason = reason

    def __getattr__(self, name: str):
        raise ImportError(f'grootv.ops.{name} needs the compiled library: {self._reason}')


def _load(library: Path, build: str = _BUILD) -> str | None:
    """Load a library, or return the reason why it cannot be."""
    if not library.exists():
        return f'{library.name} is not in {library.parent}; {build}.'
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f'{library} does not load under torch {torch.__version__} ({error}); {build}.'
    return None


def _explain_missing_cuda(reason: str) -> None:
    """Let every operator raise the reason when it is called on a CUDA tensor."""

    def explain(name: str):
        def kernel(*args, **kwargs):
            raise ImportError(f'grootv.ops.{name} on a CUDA tensor needs the CUDA library: {reason}')

        return kernel

    for operator in torch._C._dispatch_get_all_op_names():
        namespace, _, name = operator.partition('::')
        if namespace == 'grootv':
            torch.library.impl(operator, 'CUDA', explain(name))


def _load_all():
    reason = _load(_CPU)
    if reason:
        return _Missing(reason)
    if torch.version.cuda:
        reason = _load(_CUDA, f'{_BUILD}, with nvcc of CUDA {torch.version.cuda.split(".")[0]} available')
        if reason:
            _explain_missing_cuda(reason)
    return torch.ops.grootv


ops = _load_all()
KEEPS_DECOMPOSITION = ('cuda',)  # devices where a scan and its gradient share a tree's decomposition
available = not isinstance(ops, _Missing)


def require() -> None:
    """Raise an ImportError that says what to do if the compiled library is missing."""
    _ = ops.tree_scan


def onnxruntime_library() -> str:
    """Return the path of the operators for ONNX Runtime, 1.17 or later, on the CPU.

    ``SessionOptions.register_custom_ops_library`` takes it; then sessions run :func:`build_tree`,
    :func:`tree_edge_distance`, :func:`tree_scan`, :func:`selective_tree_scan` and :func:`gated_read_out` as
    operators of the domain ``grootv``, version 1, by the same kernels, in float32. Tensors are inputs and
    outputs, other arguments attributes.
    """
    if not _ONNXRUNTIME.exists():
        raise ImportError(
            f'grootv.ops.onnxruntime_library: {_ONNXRUNTIME.name} is not in {_ONNXRUNTIME.parent}; {_BUILD}.'
        )
    return str(_ONNXRUNTIME)
