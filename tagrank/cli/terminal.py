"""Text for a terminal: control characters of tags and file names are shown, and not obeyed."""

import sys
import unicodedata
from typing import TextIO

import typer

from tagrank.errors import InputError

SHOWN = 20
"""How many errors of a kind a command writes at most, if there may be as many as images."""


def visible(text: str) -> str:
    """A text with each control or formatting character as an escape, such as ``\\x1b``. Lone surrogates stay."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")
        else character
        for character in text
    )


def shown(text: str, stream: TextIO | None = None) -> str:
    """:func:`visible` if the stream, by default stdout, is a terminal. Pipes and files get the text as it is."""
    return visible(text) if (stream or sys.stdout).isatty() else text


def complain(message: object) -> None:
    """Write an error as one line on stderr."""
    typer.echo(f"tagrank: {visible(str(message))}", err=True)


class Complaints:
    """Errors that do not end a command: each is written as a line on stderr. The exit code is then 1.

    Args:
        limit: how many are written at most; the others are counted.

    Attributes:
        count: how many there were.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.count = 0
        self._limit = limit

    def __call__(self, error: InputError) -> None:
        """Write an error."""
        self.count += 1
        if self._limit is None or self.count <= self._limit:
            complain(error)

    def close(self) -> None:
        """Say how many were not written."""
        if self._limit is not None and self.count > self._limit:
            complain(f"and {self.count - self._limit} more")

    def exit(self) -> None:
        """End the command with exit code 1 if there were errors."""
        if self.count:
            raise typer.Exit(1)
