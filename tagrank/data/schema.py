"""What a JSON file may hold, declared once as a type: mostly a dataclass whose fields are the keys of an object."""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from tagrank.data.files import read_json
from tagrank.data.sealed import unseal
from tagrank.errors import InputError

T = TypeVar("T")

LARGEST = 2**63 - 1
"""The largest whole number: as for the sizes and offsets in binary files."""


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


class Rule(NamedTuple):
    """A condition on a value, in the ``Annotated`` type of a field: what is expected, in words, and the condition."""

    expected: str
    holds: Callable[[Any], bool]


Positive = Annotated[int, Rule("a whole number above 0", lambda number: number > 0)]
Text = Annotated[str, Rule("text that is not blank", lambda text: bool(text.strip()))]


def read_as(path: Path, schema: type[T], what: str, *, sealed: bool = False) -> T:
    """Read a JSON file.

    Args:
        path: the file.
        schema: the type of its content, as for :func:`decode`.
        what: what the file should be, for the error message: ``"a vocabulary"``.
        sealed: whether the file may have a checksum, which is then compared (:mod:`tagrank.data.sealed`).

    Raises:
        InputError: the file cannot be read, is not JSON, or holds something else.
    """
    value = unseal(path, read_json(path)) if sealed else read_json(path)
    try:
        decoded: T = decode(schema, value)
    except ValueError as error:
        raise InputError(f"{path}: expected {what}: {error}") from error
    return decoded


def decode(schema: Any, value: Any, place: str = "") -> Any:
    """Check a decoded JSON value against a type, strictly: there are no conversions but those named here.

    Args:
        schema: a dataclass (an object with its fields as keys; those with a default may be missing), ``list[X]`` or
            ``tuple[X, ...]`` (a list), ``dict[str, X]`` (an object), ``int`` (up to :data:`LARGEST`), ``float`` (any
            finite number, also a whole one), ``str``, ``bool``, ``None``, ``Any``, ``Literal``, a union of these, or
            ``Annotated`` with a :class:`Rule`.
        value: the value.
        place: where it is in the file, for the error message: ``shards[3].rows``.

    Returns:
        The value, with dataclasses for objects and tuples for lists where the type says so.

    Raises:
        ValueError: the value is of another type. The message names the place, what was expected, and what came.
    """
    origin, arguments = get_origin(schema), get_args(schema)
    if schema is Any:
        return value
    if origin is Annotated:
        inner, rule = arguments
        if inner in WORDS:
            _check(_is(inner, value) and rule.holds(value), rule.expected, value, place)
            return value
        value = decode(inner, value, place)
        _check(rule.holds(value), rule.expected, value, place)
        return value
    if origin in (Union, UnionType):
        return _any_of(arguments, value, place)
    if origin is Literal:
        _check(type(value) is type(arguments[0]) and value in arguments, repr(arguments[0]), value, place)
        return value
    if is_dataclass(schema):
        return _object(schema, value, place)
    if origin in (list, tuple):
        _check(isinstance(value, list), "a list", value, place)
        return origin(decode(arguments[0], item, f"{place}[{number}]") for number, item in enumerate(value))
    if origin is dict:
        _check(isinstance(value, dict), "an object", value, place)
        return {key: decode(arguments[1], item, _below(place, key)) for key, item in value.items()}
    _check(_is(schema, value), WORDS[schema], value, place)
    return value


def _is(schema: type, value: Any) -> bool:
    """Whether a value is of a type of :data:`WORDS`. A number that no tensor can hold is not."""
    if type(value) is int:
        return schema in (int, float) and abs(value) <= LARGEST
    return math.isfinite(value) if type(value) is float and schema is float else type(value) is schema


def _any_of(schemas: tuple[Any, ...], value: Any, place: str) -> Any:
    errors = []
    for schema in schemas:
        try:
            return decode(schema, value, place)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _object(schema: Any, value: Any, place: str) -> Any:
    _check(isinstance(value, dict), "an object", value, place)
    known = _fields(schema)
    for key in value:
        if key not in known:
            raise ValueError(f"{_below(place, key)}: unknown; known: {', '.join(known)}")
    missing = [key for key, (field, _) in known.items() if key not in value and _required(field)]
    if missing:
        raise ValueError(f"{_below(place, missing[0])}: missing")
    return schema(**{key: decode(known[key][1], item, _below(place, key)) for key, item in value.items()})


@cache
def _fields(schema: type) -> Mapping[str, tuple["Field[Any]", Any]]:
    hints = get_type_hints(schema, include_extras=True)
    return {field.name: (field, hints[field.name]) for field in fields(schema)}


def _required(field: "Field[Any]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _below(place: str, key: str) -> str:
    return f"{place}.{key:.60}" if place else f"{key:.60}"


def _check(holds: bool, expected: str, value: Any, place: str) -> None:
    if not holds:
        at = f"{place}: " if place else ""
        raise ValueError(f"{at}expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if type(value) is int and abs(value) > LARGEST:  # Python refuses to print very long ones
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.60}"
