"""The operators of grootv.ops that a network calls, with their arguments."""

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Keeps every call of an operator of grootv.ops that is made inside.

    Attributes:
        calls: The operator's name, the operator and its arguments.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, OpOverload, tuple]] = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator.namespace == 'grootv':
            self.calls.append((operator._opname, operator, arguments))
        return operator(*arguments, **(options or {}))
