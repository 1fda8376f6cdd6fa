"""The vocabulary: which number each tag has."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagrank.data.files import write_atomically
from tagrank.data.schema import Text, read_as
from tagrank.data.spellings import tag_name
from tagrank.errors import InputError


@dataclass(frozen=True)
class _File:
    tags: tuple[Text, ...]


class Vocabulary:
    """``V`` tags, numbered from 0. The number ``V`` is the class END, which ends a list.

    A tag that is looked up may have any spelling of :func:`tagrank.data.spellings.tag_name`.

    Args:
        tags: the tags in the order of their numbers.

    Raises:
        ValueError: there are no tags, or a tag is repeated, blank or not a string.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        if isinstance(tags, str):
            raise ValueError(f"tags: expected a sequence of tags, got the string {tags!r:.60}")
        self.tags = tuple(tags)
        for tag in self.tags:
            if not isinstance(tag, str) or not tag.strip():
                raise ValueError(f"tags: expected non-blank strings, got {tag!r:.60}")
        self._index = {tag: number for number, tag in enumerate(self.tags)}
        self._by_name = {tag_name(tag): number for tag, number in self._index.items()}
        if not self.tags:
            raise ValueError("tags: expected at least one, got none")
        if len(self._index) < len(self.tags):
            twice = Counter(self.tags).most_common(1)[0][0]
            raise ValueError(f"tags: expected each tag once, got {twice!r} twice")

    @classmethod
    def build(cls, lists: Iterable[Sequence[str]], min_count: int = 1) -> "Vocabulary":
        """Make the vocabulary of some lists: the most frequent tag first, ties in alphabetical order.

        Args:
            lists: ordered lists of tags.
            min_count: a tag that occurs fewer times is left out.

        Raises:
            InputError: no tag occurs ``min_count`` times.
        """
        counts = Counter(tag for tags in lists for tag in tags)
        kept = sorted((tag for tag, count in counts.items() if count >= min_count), key=lambda tag: (-counts[tag], tag))
        if not kept:
            raise InputError(
                f"min_count: expected a tag that occurs at least {min_count} times, none of the {len(counts)} tags does"
            )
        return cls(kept)

    @property
    def end(self) -> int:
        """The class END, ``V``."""
        return len(self.tags)

    def index(self, tag: str) -> int:
        """The number of a tag.

        Raises:
            ValueError: the vocabulary does not have the tag.
        """
        number = self._number(tag)
        if number is None:
            raise ValueError(f"tag: {tag!r} is not one of the {len(self)} tags of the vocabulary")
        return number

    def _number(self, tag: str) -> int | None:
        # The vocabulary of an earlier version may have two spellings of a name.
        number = self._index.get(tag)
        return self._by_name.get(tag_name(tag)) if number is None else number

    def encode(self, tags: Iterable[str]) -> list[int]:
        """The numbers of the tags, in the same order. Tags that the vocabulary does not have are left out."""
        return [number for tag in tags if (number := self._number(tag)) is not None]

    def tag(self, index: int) -> str:
        """The tag with the number ``index``.

        Raises:
            IndexError: ``index`` is not in ``[0, V)``. ``V`` is END, which is not a tag.
        """
        if not 0 <= index < len(self.tags):
            raise IndexError(f"index: expected a number in [0, {len(self)}), got {index}")
        return self.tags[index]

    def save(self, path: str | Path) -> None:
        """Write the vocabulary to a JSON file, ``{"tags": [...]}``, atomically."""
        write_atomically(Path(path), [self.encoded()])

    def encoded(self) -> bytes:
        """The content of the file that :meth:`save` writes."""
        return json.dumps({"tags": self.tags}, ensure_ascii=False, indent=0).encode() + b"\n"

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a vocabulary that :meth:`save` wrote.

        Raises:
            InputError: the file is missing, damaged, or not a vocabulary.
        """
        file = read_as(Path(path), _File, 'a vocabulary, {"tags": [...]}')
        try:
            return cls(file.tags)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error

    def __len__(self) -> int:
        return len(self.tags)

    def __contains__(self, tag: object) -> bool:
        return isinstance(tag, str) and self._number(tag) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.tags == other.tags

    def __hash__(self) -> int:
        return hash(self.tags)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tags: {', '.join(self.tags[:5])}{', ...' if len(self) > 5 else ''})"
