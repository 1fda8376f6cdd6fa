"""The photographs that the arguments of a command stand for."""

import codecs
import os
import sys
from collections.abc import Sequence

from tagrank.errors import InputError


def expand_stdin(paths: Sequence[str], null: bool) -> list[str]:
    """The paths, with those that are on stdin in place of ``-``.

    Args:
        paths: of the command line.
        null: whether the paths on stdin end with NUL, and not with the line.

    Raises:
        InputError: a path has a NUL, and ``null`` is off; or ``null`` is on without ``-``.
    """
    if null and "-" not in paths:
        raise InputError("-0 goes with -, for paths on stdin")
    expanded: list[str] = []
    for path in paths:
        expanded.extend(_stdin(null) if path == "-" else [path])
    return [path for path in expanded if path]


def _stdin(null: bool) -> list[str]:
    content = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    if null:
        return [os.fsdecode(path) for path in content.split(b"\0")]
    if b"\0" in content:
        raise InputError("-: expected one path a line, got NUL; -0 reads paths that end with NUL")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in content.split(b"\n")]
