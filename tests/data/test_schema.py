"""JSON values against the types of what files may hold."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from tagrank.data.schema import Positive, Rule, Text, decode, read_as
from tagrank.errors import InputError


@dataclass(frozen=True)
class Part:
    name: Text
    rows: Positive = 1


@dataclass(frozen=True)
class Whole:
    format: Literal[2]
    parts: tuple[Part, ...]
    sizes: dict[str, float] = field(default_factory=dict)
    digest: str | None = None
    tags: Annotated[list[str], Rule("at least two tags", lambda tags: len(tags) > 1)] = field(default_factory=list)
    extra: Any = None


def test_an_object() -> None:
    value = {
        "format": 2,
        "parts": [{"name": "a", "rows": 3}, {"name": "b"}],
        "sizes": {"x": 1, "y": 0.5, "z": -1e300},
        "tags": ["dog", "ball"],
        "extra": [None, {}],
    }
    decoded = decode(Whole, value)
    expected = Whole(
        2, (Part("a", 3), Part("b", 1)), {"x": 1, "y": 0.5, "z": -1e300}, None, ["dog", "ball"], [None, {}]
    )
    assert decoded == expected
    assert type(decoded.sizes["x"]) is int
    assert decode(Whole, {"format": 2, "parts": [], "digest": None}) == Whole(2, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format: expected 2, got 3"),
        ({"format": 2.0}, "format: expected 2, got 2.0"),
        ({"parts": {}}, "parts: expected a list, got {}"),
        ({"parts": [1]}, "parts[0]: expected an object, got 1"),
        ({"parts": [{"name": "a"}, {"rows": 2}]}, "parts[1].name: missing"),
        ({"parts": [{"name": " "}]}, "parts[0].name: expected text that is not blank, got ' '"),
        ({"parts": [{"name": 1}]}, "parts[0].name: expected text that is not blank, got 1"),
        ({"parts": [{"name": "a", "rows": True}]}, "parts[0].rows: expected a whole number above 0, got True"),
        ({"parts": [{"name": "a", "rows": 10**5000}]}, "above 0, got a number of 16610 bits"),
        ({"sizes": {"x": "1"}}, "sizes.x: expected a number, got '1'"),
        ({"sizes": {"x": True}}, "sizes.x: expected a number, got True"),
        ({"sizes": {"x": float("inf")}}, "sizes.x: expected a number, got inf"),
        ({"sizes": {"x": 10**400}}, "sizes.x: expected a number, got a number of 1329 bits"),
        ({"digest": 5}, "digest: expected text, got 5"),
        ({"tags": ["dog"]}, "tags: expected at least two tags, got ['dog']"),
        ({"tags": ["dog", None]}, "tags[1]: expected text, got None"),
        ({"more": 1}, "more: unknown; known: format, parts, sizes, digest, tags, extra"),
    ],
)
def test_what_is_wrong_and_where(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        decode(Whole, {"format": 2, "parts": []} | change)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"name": "a", "rows": 2}')
    assert read_as(path, Part, "a part") == Part("a", 2)
    for text, message in (
        ("[]", "expected a part: expected an object, got []"),
        ('{"name": "a", "rows": 1e999}', "expected finite numbers, got 1e999"),
        ('{"name": "\\ud800"}', "half a surrogate pair"),
        ("{", "not valid JSON"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            read_as(path, Part, "a part")
        assert str(caught.value).startswith(f"{path}: ")
        assert message in str(caught.value)
