"""What a word that is not known may have been meant to be."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'dog' or 'doll'?"``, with up to three known words like the given one, the nearest first.

    Upper and lower case, and Unicode's ways to write a letter with an accent, do not count. The text is empty if no
    word is like it.
    """
    folded: dict[str, list[str]] = {}
    for other in known:
        folded.setdefault(_fold(other), []).append(other)
    close = [other for fold in get_close_matches(_fold(word), folded, 3) for other in folded[fold]][:3]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _fold(word: str) -> str:
    return unicodedata.normalize("NFC", word).casefold().strip()
