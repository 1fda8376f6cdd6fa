"""Which tags a list may show, under which names, and how likely each must be."""

from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tagrank.data.files import first_repeated
from tagrank.data.nearest import did_you_mean
from tagrank.data.schema import read_as
from tagrank.data.spellings import tag_name
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode.ranking import Array, Ranking
from tagrank.errors import InputError

T = TypeVar("T")


class OutputTags:
    """The part of a model's vocabulary that is shown.

    Decoders treat synonyms as one class: its probability at a position is the sum of its tags' probabilities, and a
    list has the class at most once. ``synonyms`` names the class. In rankings, the index of that name stands for the
    class, or the index of its first tag if the name is not in the vocabulary.

    Args:
        vocabulary: the model's vocabulary.
        include: the only tags to show; all tags if empty. Here and in ``exclude`` and ``thresholds``, tags have the
            names that are shown.
        exclude: tags not to show.
        thresholds: the score that a tag needs to be shown, instead of the threshold for all tags.
        synonyms: names, each with the tags to show under it.

    Attributes:
        vocabulary: the names that are shown, at the model's indices.
        group: ``[V]`` int64, the class ``0..G-1`` of each tag, or -1 if the tag is not shown.
        tags: ``[G]`` int64, ascending: the index that stands for each class.
        shown_as: the synonyms' tags, each with the name that it is shown under.
        stands_for: ``[V]`` int64, for each tag, shown or not, the index that stands for its class.

    Raises:
        InputError: a tag is not in the vocabulary or has two names, a threshold is not a probability, or no tag is left
            to show.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        thresholds: Mapping[str, float] | None = None,
        synonyms: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        stands_for = np.arange(len(vocabulary))
        names = list(vocabulary.tags)
        named: dict[str, str] = {}
        synonyms, thresholds = _by_name("synonyms", synonyms or {}), _by_name("thresholds", thresholds or {})
        for name, tags in synonyms.items():
            itself = vocabulary.encode([name])
            members = sorted({_index(vocabulary, f"synonyms of {name!r}", tag) for tag in tags} - set(itself))
            for tag in (vocabulary.tag(v) for v in members):
                if named.setdefault(tag, name) != name:
                    raise InputError(f"synonyms: expected one name for {tag!r}, got {named[tag]!r} and {name!r}")
            if not members:
                raise InputError(f"synonyms: expected tags for {name!r} other than itself, got none")
            first = [*itself, *members][0]
            stands_for[members] = first
            names[first] = name
        chain = next((name for name in synonyms if name in named), None)
        if chain is not None:
            raise InputError(
                f"synonyms: {chain!r} has synonyms and is itself a synonym of {named[chain]!r}; list all under one name"
            )
        self.vocabulary = Vocabulary(names)
        self.shown_as: Mapping[str, str] = named

        shown = np.zeros(len(vocabulary), dtype=bool)
        included = [self.index("include", tag) for tag in include]
        shown[included or stands_for] = True
        shown[[self.index("exclude", tag) for tag in exclude]] = False
        if not shown.any():
            raise InputError("include, exclude: expected to leave at least one tag to show, got none")
        self.stands_for: npt.NDArray[np.int64] = stands_for
        self._show(np.flatnonzero(shown))

        self._thresholds = np.full(len(vocabulary), np.nan)
        for tag, threshold in thresholds.items():
            if not 0 <= threshold <= 1:
                raise InputError(f"thresholds: {tag!r}: expected a probability in [0, 1], got {threshold}")
            self._thresholds[self.index("thresholds", tag)] = threshold

    def _show(self, tags: npt.NDArray[np.int64]) -> None:
        self.tags: npt.NDArray[np.int64] = tags
        class_of = np.full(len(self.vocabulary), -1)
        class_of[tags] = np.arange(len(tags))
        self.group: npt.NDArray[np.int64] = class_of[self.stands_for]

    def without(self, tags: Iterable[int]) -> "OutputTags | None":
        """The same, but for some tags, which are not shown. ``None`` if no tag is left.

        Args:
            tags: the indices that stand for their classes.
        """
        left = np.setdiff1d(self.tags, np.array([*tags], dtype=np.int64))
        if not len(left):
            return None
        other = copy(self)
        other._show(left)
        return other

    def index(self, what: str, tag: str) -> int:
        """The index that stands for a tag, given by the name that is shown.

        Args:
            what: the option that named the tag, for the message.
            tag: the name.

        Raises:
            InputError: no tag is shown under this name.
        """
        tag = tag_name(tag)
        if tag in self.shown_as:
            raise InputError(
                f"{what}: {tag!r} is shown as {self.shown_as[tag]!r}, because of the synonyms; use that name"
            )
        return _index(self.vocabulary, what, tag)

    def merge(self, p: Array) -> Array:
        """Probabilities of tags and END, ``[..., V + 1]``, to those of classes and END, ``[..., G + 1]``."""
        target = np.append(np.where(self.group < 0, len(self.tags) + 1, self.group), len(self.tags))
        if np.array_equal(target, np.arange(p.shape[-1])):
            return p
        merged = np.zeros((len(self.tags) + 2, *p.shape[:-1]))
        np.add.at(merged, target, np.moveaxis(p, -1, 0))
        return np.moveaxis(merged[:-1], 0, -1)

    def ranking(self, classes: list[int], scores: Array, threshold: float | None) -> Ranking:
        """One image's ranked classes as tags, without those whose score is below their threshold.

        Args:
            classes: in the order of the ranking.
            scores: ``[G]``, of all classes.
            threshold: for the tags that have no threshold of their own; 0 if ``None``.
        """
        limits = self._thresholds[self.tags]
        limits = np.where(np.isnan(limits), 0.0 if threshold is None else threshold, limits)
        kept = [g for g in classes if scores[g] >= limits[g]]
        return Ranking([int(self.tags[g]) for g in kept], [float(scores[g]) for g in kept])

    def rename(self, tags: Iterable[str]) -> tuple[str, ...]:
        """A person's list under the names that are shown. If two tags have one name, the first tag's place counts."""
        return tuple(dict.fromkeys(self.shown_as.get(tag, tag) for tag in tags))


def read_synonyms(path: str | Path) -> dict[str, list[str]]:
    """Read a file of synonyms, ``{"person": ["man", "woman"], ...}``: names and the tags to show under them.

    Raises:
        InputError: the file cannot be read, or has another form.
    """
    synonyms = read_as(Path(path), dict[str, list[str]], 'names with lists of tags, {"person": ["man", "woman"]}')
    if not all(name.strip() for name in synonyms):
        raise InputError(f"{path}: expected names that are not blank, got one that is")
    return synonyms


def read_thresholds(path: str | Path) -> dict[str, float]:
    """Read a file of thresholds, ``{"dog": 0.5, ...}``: tags and the scores they need.

    Raises:
        InputError: the file cannot be read, or has another form.
    """
    return read_as(Path(path), dict[str, float], 'tags with probabilities, {"dog": 0.5}')


def _by_name(what: str, values: Mapping[str, T]) -> dict[str, T]:
    """The same values, with the names in normal form."""
    named = {tag_name(name): value for name, value in values.items()}
    if len(named) < len(values):
        twice = first_repeated(map(tag_name, values))
        raise InputError(f"{what}: expected each name once, got {twice!r:.60} in two spellings")
    return named


def _index(vocabulary: Vocabulary, what: str, tag: str) -> int:
    if tag not in vocabulary:
        meant = did_you_mean(tag, vocabulary.tags)
        raise InputError(f"{what}: {tag!r} is not one of the model's {len(vocabulary)} tags{meant}")
    return vocabulary.index(tag)
