"""What the readers and writers of tagrank's files share: strict JSON, and files that appear whole or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, NoReturn

from tagrank.errors import InputError


def is_utf8(name: str) -> bool:
    """Whether a file's name is UTF-8: bytes of it that are not reach Python as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def parse_json(text: str, keep: Container[str] | None = None) -> Any:
    """The value of a JSON text, by RFC 8259 to the letter.

    Args:
        text: the JSON.
        keep: keep these keys of objects alone, so that the rest of a large text does not stay in memory; None for all.

    Raises:
        ValueError: the text is not JSON, an object has a key twice, or a number is NaN or infinite.
    """

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_keys(pairs)
        return dict(pairs) if keep is None else {key: value for key, value in pairs if key in keep}

    try:
        return json.loads(text, object_pairs_hook=kept, parse_constant=_constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise ValueError(f"not valid JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"not valid JSON: {name} is not a number there")


def read_json(path: Path, keep: Container[str] | None = None) -> Any:
    """The value in a JSON file, or the part of it that :func:`parse_json` keeps.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or not JSON.
    """
    try:
        return parse_json(path.read_bytes().decode("utf-8-sig"), keep)
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def reason(error: OSError) -> str:
    """Why a file cannot be used, in the operating system's words, without the path."""
    return (error.strerror or str(error)).lower()


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that a reader finds the old content or the new one, whatever interrupts the writer.

    The content goes to a temporary file ``.NAME.<random>.tmp`` in the same folder, to the disk, and then to its name. A
    process that is killed leaves the temporary file behind. A link stays one: the file that it leads to is written.

    Raises:
        OSError: the file cannot be written; its ``filename`` is ``path``.
    """
    given, path = path, Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror, str(given)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
