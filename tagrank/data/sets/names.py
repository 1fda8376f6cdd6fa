"""From names, as people write them, to tags: case, plurals, synonyms, and names mentioned in a sentence."""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tagrank.data.files import read_text
from tagrank.errors import InputError

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# Plurals, each with its singular, that the rules of `singular` get wrong.
IRREGULAR = (
    "atlases atlas, buses bus, cactuses cactus, calves calf, campuses campus, canoes canoe, canvases canvas, "
    "children child, circuses circus, cookies cookie, feet foot, gases gas, geese goose, grandchildren "
    "grandchild, halves half, hooves hoof, horseshoes horseshoe, knives knife, leaves leaf, lenses lens, lives "
    "life, loaves loaf, men man, mice mouse, minibuses minibus, movies movie, octopuses octopus, oxen ox, people "
    "person, pies pie, quizzes quiz, scarves scarf, shelves shelf, shoes shoe, smoothies smoothie, teeth tooth, "
    "thieves thief, ties tie, toes toe, walruses walrus, wives wife, wolves wolf, women woman, zombies zombie"
)
# Words that look like plurals but are singular, or whose singular means something else.
INVARIABLE = (
    "abdomen atlas binoculars bus cactus canvas clothes eyeglasses gas goggles jeans lens news omen "
    "pajamas pants pliers ramen scissors series shorts species specimen sunglasses tennis trousers"
)

SINGULARS = dict(pair.split() for pair in IRREGULAR.split(", "))
UNCHANGED = frozenset(INVARIABLE.split())


def singular(name: str) -> str:
    """The singular of an English noun in lower case. If the name has several words, only the last word changes.

    Uses rules (``-ies``, ``-es`` after a hissing sound, ``-s``, ``-men``) and lists of exceptions. A name that is not a
    plural is returned unchanged.
    """
    if name == "glasses":  # "glasses" means spectacles, but "wine glasses" has the singular "wine glass"
        return name
    head, space, word = name.rpartition(" ")
    return head + space + _singular(word)


@cache
def _singular(word: str) -> str:
    if word in SINGULARS:
        return SINGULARS[word]
    if word in UNCHANGED or len(word) < 3:
        return word
    if word.endswith("men"):
        return word[:-3] + "man"
    if not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "oes")):
        return word[:-2]
    return word[:-1]


def normalise(name: str) -> str:
    """A name in normal form: lower case, Unicode NFC, single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).lower().split())


class Names:
    """Maps names to tags.

    Args:
        synonyms: maps names to tags, as :func:`read_words` returns them.
        plurals: whether to replace plurals by their singular.
    """

    def __init__(self, synonyms: Mapping[str, str] | None = None, plurals: bool = True) -> None:
        self._synonyms = synonyms or {}
        self._plurals = plurals

    def tag(self, name: str) -> str:
        """The tag of a name: the synonym's tag, or else the singular in normal form. Blank names give an empty tag."""
        name = normalise(name)
        if name in self._synonyms or not self._plurals:
            return self._synonyms.get(name, name)
        one = singular(name)
        return self._synonyms.get(one, one)


class Mentions:
    """Finds tags in sentences.

    Args:
        words: maps names to tags. A name has one or more words; hyphens count as spaces.
    """

    def __init__(self, words: Mapping[str, str]) -> None:
        self._words = {" ".join(_words(name)): tag for name, tag in words.items()}
        self._longest = max((name.count(" ") + 1 for name in self._words), default=0)

    def find(self, sentence: str) -> list[str]:
        """The tags that a sentence mentions, in the order of their first mention.

        At each word the longest name counts: "hot dog" does not mention a dog. The last word of a name may be a plural.
        """
        words = _words(sentence)
        found: dict[str, None] = {}
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                name = " ".join(words[at : at + length])
                tag = self._words.get(name) or self._words.get(singular(name))
                if tag is not None:
                    found.setdefault(tag)
                    at += length
                    break
            else:
                at += 1
        return list(found)


def _words(text: str) -> list[str]:
    """The words of a text in lower case, without a possessive ``'s``."""
    return [re.sub("['’]s?$", "", word) for word in WORD.findall(normalise(text))]


def read_words(path: Path) -> dict[str, str]:
    """Read a file of tags and their synonyms. Each line is ``tag`` or ``tag: name, name``.

    ``#`` begins a comment. Tags and names are brought to normal form (:func:`normalise`).

    Returns:
        Maps each name to its tag. Each tag is also a name of itself.

    Raises:
        InputError: the file cannot be read, is not UTF-8, has no tags, has an empty name, or has one name for two tags.
    """
    words: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        head, colon, names = line.partition(":")
        tag = normalise(head)
        for name in [tag, *(normalise(name) for name in names.split(",") if colon)]:
            if not name:
                raise InputError(f"{path}, line {number}: expected 'tag' or 'tag: name, name', got {line!r:.60}")
            if words.setdefault(name, tag) != tag:
                raise InputError(f"{path}, line {number}: {name!r} is already a name for {words[name]!r}")
    if not words:
        raise InputError(f"{path}: expected a tag on each line, the file has none")
    return words
