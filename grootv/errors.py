"""The exception for failures that the user can fix."""

from collections.abc import Iterable

_SHOWN = 3  # names listed in an error


class UserError(Exception):
    """A failure in one sentence: the thing, what is wrong with it, and the fix.

    The tools print the sentence alone and exit with status 1. The sentence is the only argument, so that
    the exception can be pickled by a data-loading process.
    """


def first(names: Iterable) -> str:
    """The first names of many, and how many more there are."""
    names = [str(name) for name in names]
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
