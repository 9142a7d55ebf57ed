"""End a tool that is interrupted while it still imports, which takes seconds, without a traceback.

Tools import this module before all others; :func:`grootv.cli.run` has a handler of its own.
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


if parent_process() is None and os.path.abspath(sys.argv[0]).startswith(TOOLS):
    signal.signal(signal.SIGINT, end)
