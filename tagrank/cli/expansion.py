"""From dataclasses of options to the options of a command."""

import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """The same command, with each parameter that is a dataclass replaced by one option for each of its fields.

    The function still receives an object of the dataclass. Only fields made by :func:`tagrank.options.option` become
    options; other fields are for Python callers and keep their defaults.

    Args:
        function: the command.
    """
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in signature.parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            types = get_type_hints(hints[name])
            parameters += (_parameter(field, types[field.name]) for field in _options(hints[name]))
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: _value(field, given.pop(field.name)) for field in _options(group)})
        function(**given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: type) -> list["Field[Any]"]:
    return [field for field in fields(group) if field.metadata]


def _flag(field: "Field[Any]") -> str:
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


def _parameter(field: "Field[Any]", type_: Any) -> inspect.Parameter:
    """The parameter that typer sees. For a field with a parser it is a text, ``None`` if the option is not given."""
    metadata = field.metadata
    type_, default = metadata["type"] or type_, field.default
    if metadata["parse"] is not None:
        type_, default = str | None, None
    annotated: Any = Annotated  # its argument is known only now, so mypy must not take it for a type
    annotation = annotated[type_, typer.Option(_flag(field), help=metadata["help"], **metadata["limits"])]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(field: "Field[Any]", given: Any) -> Any:
    parse = field.metadata["parse"]
    if parse is None:
        return given
    return field.default if given is None else parse(_flag(field), given)
