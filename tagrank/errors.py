"""What a user did that cannot work, as opposed to what a program did wrong."""


class InputError(ValueError):
    """Bad input from outside: a file, a folder, an option. The message names it and says what was expected.

    The command line prints the message alone and exits with code 2.
    """
