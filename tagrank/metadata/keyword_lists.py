"""Which keywords a photograph has after tagrank's are written to it or taken out. No files here.

A photograph has up to four lists of keywords, all of which programs read: ``dc:subject``, flat; the IPTC keywords, flat
and older; and two of paths, ``lr:hierarchicalSubject`` (``person|man``, Lightroom) and ``digiKam:TagsList``
(``person/man``). Who reads paths mostly ignores the flat list. So whoever writes one must write all that are there.

What tagrank adds to each list is recorded beside it. A keyword that a person had before is not in this record, and
stays when tagrank's are taken out. A keyword in the record that is missing from ``dc:subject`` was taken out by a
person; it is not put back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tagrank.data.spellings import lower_tag_name

Words = tuple[str, ...]
Path = tuple[str, ...]

SCORE_TOLERANCE = 1e-3
"""By how much a score may differ from the recorded one and count as the same: it depends on the batch, a little."""


class List(str, Enum):
    """A list of keywords in a photograph. The value is its name in messages and in the record."""

    subject = "Subject"
    iptc = "Keywords"
    hierarchical = "HierarchicalSubject"
    tags_list = "TagsList"


SEPARATORS = {List.hierarchical: "|", List.tags_list: "/"}
"""The lists of paths, and what is between the names of a path."""

IPTC_BYTES = 64
"""The longest IPTC keyword, in bytes of UTF-8 (IPTC-NAA Information Interchange Model 4.2, 2:25)."""


@dataclass(frozen=True)
class Ranked:
    """The tags that a model, or a person, gave a photograph.

    Attributes:
        tags: the most important first.
        scores: of each tag; empty if they are not known.
        model: which model gave them; empty if none did.
        unlike: how unlike the training photographs the photograph is; None if that is not known.
        members: tags below other tags, such as ``{"person": ("man",)}``.
    """

    tags: Words
    scores: tuple[float, ...] = ()
    model: str = ""
    unlike: float | None = None
    members: Mapping[str, Words] = field(default_factory=dict)

    def says(self, other: "Ranked") -> bool:
        """Whether the other says the same, up to what rounding changes. Members are not compared."""
        mine, theirs = (
            (*ranked.scores, *(() if ranked.unlike is None else (ranked.unlike,))) for ranked in (self, other)
        )
        return (self.tags, self.model, len(self.scores), len(mine)) == (
            *(other.tags, other.model),
            *(len(other.scores), len(theirs)),
        ) and all(abs(a - b) <= SCORE_TOLERANCE for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True)
class Record:
    """What tagrank noted in a photograph: what it wrote, and what of that was not there before."""

    ranked: Ranked
    added: Mapping[List, Words]

    def adds_as(self, other: "Record") -> bool:
        """Whether the other has the same keywords, in any order."""
        return all(sorted(self.added.get(name, ())) == sorted(other.added.get(name, ())) for name in List)


Keywords = Mapping[List, Words]
"""The lists of a photograph. A list that its file cannot have is missing; one that it does not have is empty."""


def with_tags(there: Keywords, record: Record | None, ranked: Ranked, carried: Words = ()) -> tuple[Keywords, Record]:
    """The lists and the record after tags are written.

    Args:
        there: the lists as they are.
        record: of what tagrank wrote before.
        ranked: the tags.
        carried: keywords that the photograph has elsewhere, and that must be on these lists too.
    """
    before: Mapping[List, Words] = record.added if record else {}
    refused = _keys(before.get(List.subject, ())) - _keys(there[List.subject])
    theirs = {name: _without(words, before.get(name, ())) for name, words in there.items()}
    flat_theirs = _once((*theirs[List.subject], *theirs.get(List.iptc, ()), *carried))
    flat = _once((*flat_theirs, *ranked.tags))
    paths: list[Path] = [(tag,) for tag in flat_theirs]
    for tag in ranked.tags:
        paths += [(tag, member) for member in ranked.members.get(tag, ())] or [(tag,)]

    lists, added = {}, {}
    for name, words in theirs.items():
        if name in SEPARATORS:
            # A list of paths hides the flat ones. So it is only begun if there are paths.
            needed = words or (name is List.hierarchical and any(len(path) > 1 for path in paths))
            new = _new_paths(words, paths if needed else [], SEPARATORS[name], refused)
            gone: Words = ()
        else:
            there_already = _keys(words)
            new = (
                [word for word in map(_cut, flat) if _key(word) not in there_already]
                if name is List.iptc
                else [word for word in flat if _key(word) not in there_already]
            )
            gone = tuple(word for word in new if _key(word) in refused)
            new = [word for word in new if _key(word) not in refused]
        lists[name] = (*words, *new)
        added[name] = (*new, *(gone if name is List.subject else ()))
    return lists, Record(ranked, added)


def without_tags(there: Keywords, record: Record) -> Keywords:
    """The lists without what tagrank added."""
    return {name: _without(words, record.added.get(name, ())) for name, words in there.items()}


def same_lists(one: Keywords, other: Keywords) -> bool:
    """Whether lists have the same keywords, in any order: programs sort them."""
    return all(sorted(words) == sorted(other[name]) for name, words in one.items())


def _key(word: str) -> str:
    return lower_tag_name(word)


def _keys(words: Iterable[str]) -> set[str]:
    return set(map(_key, words))


def _once(words: Iterable[str]) -> Words:
    return tuple({_key(word): word for word in reversed([*words])}.values())[::-1]


def _without(words: Sequence[str], others: Iterable[str]) -> Words:
    keys = _keys(others)
    return tuple(word for word in words if _key(word) not in keys)


def _new_paths(there: Words, paths: Sequence[Path], separator: str, refused: set[str]) -> list[str]:
    """The paths that are not there yet, in their form on the list. A path is there if another ends with it."""
    known = [tuple(map(_key, word.split(separator))) for word in there]
    new: dict[Path, str] = {}
    for path in paths:
        names = tuple(" ".join(name.split(separator)) for name in path)
        keys = tuple(map(_key, names))
        if _key(path[0]) not in refused and not any(other[-len(keys) :] == keys for other in known):
            new.setdefault(keys, separator.join(names))
    return list(new.values())


def _cut(word: str) -> str:
    """A word as an IPTC keyword: what is longer is cut between two characters."""
    return word.encode()[:IPTC_BYTES].decode(errors="ignore")
