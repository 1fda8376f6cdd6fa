"""Suggestions for words that are not known."""

import pytest

from tagrank.data.nearest import did_you_mean


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("dgo", "; did you mean 'dog'?"),
        ("DOG", "; did you mean 'dog'?"),
        ("dol ", "; did you mean 'doll' or 'dog'?"),
        ("cafe\u0301", "; did you mean 'Café'?"),
        ("car", ""),
        ("", ""),
    ],
)
def test_words(word: str, meant: str) -> None:
    assert did_you_mean(word, ["dog", "doll", "grass", "Café"]) == meant
