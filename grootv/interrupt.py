"""What a tool does before all other imports, which take seconds and may allocate memory.

A tool that is interrupted while it still imports ends without a traceback; :func:`grootv.cli.run` has a
handler of its own. Large tensors on the CPU get huge pages, because fresh small pages cost a training step up
to a tenth of its time: THP_MEM_ALLOC_ENABLE=0 turns that off.
"""

import os
import signal
import sys
from multiprocessing import parent_process
from types import FrameType
from typing import NoReturn

TOOLS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'tools', '')


def end(number: int, _frame: FrameType | None) -> NoReturn:
    name = os.path.basename(sys.argv[0])
    os.write(2, f'{name}: stopped by {signal.Signals(number).name}\n'.encode())
    os._exit(128 + number)  # an exception would travel through half-imported modules


os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')  # read by PyTorch when it first needs memory
if parent_process() is None and os.path.abspath(sys.argv[0]).startswith(TOOLS):
    signal.signal(signal.SIGINT, end)
