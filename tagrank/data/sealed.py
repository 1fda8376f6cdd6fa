"""JSON objects with a checksum, which tells damage that is still good JSON: another digit, another letter of a name."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagrank.errors import InputError

KEY = "checksum"


def seal(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A JSON object as a text that ends with its checksum, which replaces one that it has."""
    return json.dumps(_without(record) | {KEY: _checksum(record)}, indent=indent).encode() + b"\n"


def unseal(path: Path, value: Any) -> Any:
    """What :func:`seal` got, if a decoded JSON text has a checksum. Any other value stays as it is.

    Args:
        path: of the file, for the error message.
        value: the decoded text.

    Raises:
        InputError: the checksum is that of something else.
    """
    if not isinstance(value, dict) or KEY not in value:
        return value
    if value[KEY] != _checksum(value):
        raise InputError(
            f"{path}: damaged, or edited by hand: its {KEY} is that of something else; it is read as it is if {KEY} is "
            "removed"
        )
    return _without(value)


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_without(record), sort_keys=True).encode()).hexdigest()[:16]


def _without(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != KEY}
