"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A failure told in one sentence: the thing, what is wrong with it, and the mend.

    The tools print the sentence alone and leave with status 1. The only argument is the sentence,
    so that the exception survives the way out of a data-loading process.
    """
