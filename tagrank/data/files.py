"""Shared by the readers and writers of tagrank's files: strict JSON, and files that appear whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Container, Hashable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tagrank.errors import InputError

Item = TypeVar("Item", bound=Hashable)

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_utf8(name: str) -> bool:
    """Whether a file's name is valid UTF-8. Python decodes a name's invalid bytes to lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def parse_json(text: str, keep: Container[str] | None = None) -> Any:
    """Decode a JSON text, strictly by RFC 8259.

    Args:
        text: the JSON.
        keep: the keys to keep in objects; all other keys are dropped, which saves memory when the text is large. None
            keeps all keys.

    Raises:
        ValueError: the text is not JSON, an object has the same key twice, or a number is NaN or infinite.
    """

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_keys(pairs)
        return dict(pairs) if keep is None else {key: value for key, value in pairs if key in keep}

    try:
        return json.loads(text, object_pairs_hook=kept, parse_constant=_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise ValueError(f"not valid JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) < len(pairs):
        twice = first_repeated(key for key, _ in pairs)
        raise ValueError(f"the key {twice!r:.60} appears twice in one object")


def first_repeated(items: Iterable[Item]) -> Item:
    """The first item that is equal to an earlier one. There must be one."""
    seen: set[Item] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    raise ValueError("items: expected a repeated one")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"expected finite numbers, got {digits:.30}")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"not valid JSON: {name} is not a JSON number")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. Line ends are kept as they are.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start + 1}") from error


def read_json(path: Path, keep: Container[str] | None = None) -> Any:
    """Decode a JSON file. ``keep`` is as for :func:`parse_json`.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is not JSON; or, without ``keep``, a text has half a
            surrogate pair.
    """
    text = read_text(path)
    try:
        value = parse_json(text, keep)
        if keep is None and _SURROGATE.search(text):
            # Two halves that belong together are one character by now.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: expected text in Unicode, got half a surrogate pair") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def reason(error: OSError) -> str:
    """The operating system's message for an error, in lower case and without the path."""
    return (error.strerror or str(error)).lower()


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 200 characters; the error's type if it has no message."""
    return f"{(str(error).splitlines() or [''])[0] or type(error).__name__:.200}"


def write_atomically(
    path: Path, chunks: Iterable[bytes | memoryview], *, finish: Callable[[Path], None] | None = None
) -> None:
    """Write a file so that a reader finds either the old content or the new content, whatever interrupts the writer.

    The content is written to a temporary file ``.NAME.<random>.tmp`` in the same folder and flushed to the disk. Then
    the temporary file is renamed to ``path``. A killed process leaves the temporary file behind. If ``path`` is a
    symbolic link, the link stays and its target is replaced.

    Args:
        path: the file.
        chunks: its content.
        finish: called with the temporary file when its content is complete. An error leaves the old file.

    Raises:
        OSError: the file cannot be written; its ``filename`` is ``path``.
    """
    given, path = path, Path(os.path.realpath(path))
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            if finish is not None:
                finish(temporary)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror, str(given)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that what was made, renamed or deleted in it stays so after a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """An unused path ``.NAME.<random>.tmp`` beside ``path``, for what is to be renamed to ``path``, or deleted."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def leftovers(folder: Path, name: str) -> list[Path]:
    """What killed processes left in a folder: the entries that have a name from :func:`temporary_path`.

    Args:
        folder: the folder.
        name: a regular expression of the names of the files that they were to become.

    Raises:
        OSError: the folder cannot be read.
    """
    temporary = re.compile(rf"\.(?:{name})\.[0-9a-f]+\.tmp")
    return sorted(entry for entry in folder.iterdir() if temporary.fullmatch(entry.name))


def lock_folder(folder: Path) -> int:
    """Make a folder if it does not exist, and lock it.

    Returns:
        A descriptor of the folder. Other processes that lock it are refused until the descriptor is closed or the
        process ends.

    Raises:
        InputError: another process has locked the folder, or it cannot be made or opened.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder}: {reason(error)}") from error
    try:
        # Some network file systems cannot lock a folder. There the user must not start two writers.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{folder}: another process is writing to it") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
