"""The error and the warning for mistakes of the user, as opposed to mistakes in a program."""


class InputError(ValueError):
    """A file, a folder or an option is not usable. The message names it, and says what was expected and what came.

    The command line prints only the message, without a traceback, and exits with code 2.
    """


class InputWarning(UserWarning):
    """What was given can be used, but not for all that a user may expect. The command line prints only the message."""
