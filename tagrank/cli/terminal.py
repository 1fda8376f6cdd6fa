"""Text for a terminal: control characters of tags and file names are shown, and not obeyed."""

import sys
import unicodedata
from typing import TextIO

import typer


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
