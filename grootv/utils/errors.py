"""The one exception that means: the user can mend this."""

from collections.abc import Iterable

_SHOWN = 3  # names listed in an error


class UserError(Exception):
    """A failure told in one sentence: the thing, what is wrong with it, and the mend.

    The tools print the sentence alone and leave with status 1. The only argument is the sentence,
    so that the exception survives the way out of a data-loading process.
    """


def first(names: Iterable) -> str:
    """The first names of many, and how many more there are."""
    names = [str(name) for name in names]
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
