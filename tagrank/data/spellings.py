"""When two spellings are one name: of a tag, or of an image's file.

``é`` is one character or two in Unicode. Both look alike, and systems differ in which they write.
"""

import os
import posixpath
import unicodedata
from pathlib import Path, PurePosixPath


def tag_name(text: str) -> str:
    """A tag in normal form: Unicode NFC, without white space around it. Its case stays."""
    return text if text.isascii() and text == text.strip() else unicodedata.normalize("NFC", text.strip())


def lower_tag_name(text: str) -> str:
    """:func:`tag_name` in lower case."""
    return tag_name(text.lower())


def image_key(path: str) -> str:
    """What the spellings of an image's path have in common: ``./é.jpg`` and ``é.jpg`` are one image."""
    path = posixpath.normpath(path)
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def file_key(path: str | Path) -> str:
    """What the spellings of a file's path have in common, for who is in the current folder: also the absolute path."""
    return image_key(os.path.abspath(path))


def find_file(folder: Path, name: str) -> Path:
    """The path of a file below a folder. If it does not exist, other spellings in Unicode are tried.

    Args:
        folder: the folder.
        name: the file's path relative to the folder.
    """
    path = folder / name
    if name.isascii() or os.path.lexists(path):
        return path
    for part in PurePosixPath(name).parts:
        spellings = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        folder /= next((spelling for spelling in spellings if os.path.lexists(folder / spelling)), part)
    return folder
