import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar('T')


def wait_for(
    condition: Callable[[], T], what: str, timeout: float = 60, ignored: tuple[type[Exception], ...] = ()
) -> T:
    """What a condition gives once it is true and raises no error but the ignored ones."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with suppress(*ignored):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError(f'{what} did not come within {timeout} s')
