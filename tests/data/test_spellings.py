"""Spellings of one name: ``é`` as one character (NFC) or as two (NFD), white space, case, and paths."""

from pathlib import Path

import pytest

from tagrank.data.spellings import find_file, image_key, lower_tag_name, tag_name

ONE, TWO = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("spelling", [ONE, TWO, f" {ONE}\u00a0", f"\t{TWO}\n"])
def test_a_tag_has_one_spelling(spelling: str) -> None:
    assert tag_name(spelling) == ONE


def test_case_is_kept_unless_asked_for() -> None:
    assert (tag_name(" Dog "), lower_tag_name(" Dog ")) == ("Dog", "dog")
    assert lower_tag_name("E\u0301\u0130") == "\u00e9i\u0307"


@pytest.mark.parametrize("spelling", [f"./a/{ONE}.jpg", f"a//{TWO}.jpg", f"a/./{TWO}.jpg", f"b/../a/{ONE}.jpg"])
def test_an_image_has_one_key(spelling: str) -> None:
    assert image_key(spelling) == f"a/{ONE}.jpg"


def test_a_file_is_found_in_another_spelling(tmp_path: Path) -> None:
    (tmp_path / TWO / ONE).mkdir(parents=True)
    (tmp_path / TWO / ONE / f"{TWO}.jpg").touch()
    found = tmp_path / TWO / ONE / f"{TWO}.jpg"
    for name in (f"{ONE}/{ONE}/{ONE}.jpg", f"{TWO}/{TWO}/{TWO}.jpg"):
        assert find_file(tmp_path, name) == found
    assert find_file(tmp_path, f"{ONE}/b.jpg") == tmp_path / TWO / "b.jpg"
    assert find_file(tmp_path, "b.jpg") == tmp_path / "b.jpg"
    (tmp_path / ONE).mkdir()
    assert find_file(tmp_path, ONE) == tmp_path / ONE
