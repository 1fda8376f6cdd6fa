import os
import stat
from pathlib import Path

import pytest

from tagrank.data.files import parse_json, read_json, write_atomically
from tagrank.errors import InputError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' appears twice in one object"),
        ("[1, -Infinity]", "not valid JSON: -Infinity is not a JSON number"),
        ("[1,\n 2 3]", "not valid JSON: Expecting ',' delimiter at line 2 column 4"),
        ("", "not valid JSON: Expecting value at column 1"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
    ],
)
def test_parse_json(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|twice") as caught:
        parse_json(text)
    assert str(caught.value) == reason


def test_read_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, "\xc3\xa9"]}\n')
    assert read_json(path) == {"a": [1, "é"]}
    path.write_bytes(b'{"a": \xff}')
    with pytest.raises(InputError, match=r"a\.json: not UTF-8 at byte 7$"):
        read_json(path)
    with pytest.raises(InputError, match=r"b\.json: no such file or directory$"):
        read_json(tmp_path / "b.json")


def test_write_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, [b"old"])
    write_atomically(path, iter([b"new", b"er"]))
    assert path.read_bytes() == b"newer"
    assert not path.stat().st_mode & stat.S_IXUSR

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'$"):
        write_atomically(path, [b"newest"])
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["file"]


def test_the_error_names_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    for name in ("folder", "nowhere/file", "folder/in it"):
        with pytest.raises(OSError, match=f": '{tmp_path / name}'$"):
            write_atomically(tmp_path / name, [b"new"])


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to(Path("folder", "target"))
    for content in (b"new", b"newer"):  # first the link's target does not exist, then it does
        write_atomically(link, [content])
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert os.listdir(tmp_path / "folder") == ["target"]


def test_parse_json_keeps_only_some_keys() -> None:
    text = '{"a": [{"a": 1, "b": {"a": 2}}, {"b": 3}], "c": {"a": 4}}'
    assert parse_json(text, keep={"a"}) == {"a": [{"a": 1}, {}]}
    with pytest.raises(ValueError, match="the key 'b' appears twice in one object"):
        parse_json('{"b": 1, "b": 2}', keep={"a"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1e999]", "expected finite numbers, got 1e999"),
        ("[-1e999]", "expected finite numbers, got -1e999"),
        ('{"a": "\\ud800"}', "expected text in Unicode, got half a surrogate pair"),
        ('{"\\udc00": 1}', "expected text in Unicode, got half a surrogate pair"),
    ],
)
def test_json_that_python_would_accept(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"a\.json: {reason}$"):
        read_json(path)
    path.write_text('["\\ud83d\\ude00", 1e308]')
    assert read_json(path) == ["\U0001f600", 1e308]
