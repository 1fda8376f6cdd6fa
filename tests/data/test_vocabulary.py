import json
from pathlib import Path

import pytest

from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError


def test_numbers() -> None:
    vocabulary = Vocabulary(["dog", "ball", "café"])
    assert len(vocabulary) == vocabulary.end == 3
    assert vocabulary.tags == ("dog", "ball", "café")
    assert [vocabulary.index(tag) for tag in vocabulary.tags] == [0, 1, 2]
    assert [vocabulary.tag(index) for index in range(3)] == ["dog", "ball", "café"]
    assert vocabulary.encode(["ball", "unknown", "dog"]) == [1, 0]
    assert "ball" in vocabulary
    assert "unknown" not in vocabulary
    with pytest.raises(ValueError, match="'unknown' is not one of the 3 tags"):
        vocabulary.index("unknown")
    for index in (-1, 3):
        with pytest.raises(IndexError, match=rf"expected a number in \[0, 3\), got {index}"):
            vocabulary.tag(index)


def test_spellings_of_a_tag() -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    for stored in (one, two, f" {one}"):
        vocabulary = Vocabulary(["dog", stored])
        assert vocabulary.encode([two, one, f"{one} "]) == [1, 1, 1]
        assert vocabulary.index(two) == 1
        assert two in vocabulary
        assert one in vocabulary
    # Vocabularies of earlier versions can have both.
    assert Vocabulary([two, one]).encode([one, two]) == [1, 0]


def test_build() -> None:
    lists = [["dog", "ball"], ["ball", "ant"], ["cat", "ball", "dog"], ["ant"]]
    assert Vocabulary.build(lists).tags == ("ball", "ant", "dog", "cat")
    assert Vocabulary.build(lists, min_count=2).tags == ("ball", "ant", "dog")
    with pytest.raises(InputError, match="expected a tag that occurs at least 4 times, none of the 4 tags does"):
        Vocabulary.build(lists, min_count=4)
    with pytest.raises(InputError, match="none of the 0 tags does"):
        Vocabulary.build([])


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ([], "expected at least one, got none"),
        (["a", "b", "a"], "expected each tag once, got 'a' twice"),
        (["a", " "], "expected non-blank strings, got ' '"),
        (["a", 3], "expected non-blank strings, got 3"),
        ("abc", "expected a sequence of tags, got the string 'abc'"),
    ],
)
def test_bad_tags(tags: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Vocabulary(tags)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    vocabulary = Vocabulary(["dog", "café", '"quoted"'])
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert hash(Vocabulary.load(path)) == hash(vocabulary)
    assert Vocabulary.load(path) != Vocabulary(["dog"])
    assert json.loads(path.read_text(encoding="utf-8")) == {"tags": list(vocabulary.tags)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"tags":\n["dog", ', "not valid JSON: Expecting value at line 2 column"),
        (b"\xff", "not UTF-8 at byte 1"),
        (b'["dog"]', "expected a vocabulary"),
        (b'{"tags": "dog"}', "expected a vocabulary"),
        (b'{"tags": ["dog"], "more": 1}', "expected a vocabulary"),
        (b'{"tags": ["dog", "dog"]}', "expected each tag once, got 'dog' twice"),
        (b'{"tags": []}', "expected at least one, got none"),
    ],
)
def test_bad_file(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Vocabulary.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        Vocabulary.load(tmp_path / "vocabulary.json")
