"""Photographs of an index, found by tags or by another photograph, with small pictures of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from tagrank.errors import InputError
from tagrank.evaluation.thumbnails import Thumbnail, thumbnail
from tagrank.model_files import model_digest
from tagrank.retrieval import open_index

if TYPE_CHECKING:
    from torch import Tensor

    from tagrank.annotator import Annotator
    from tagrank.retrieval import Match

TOP = 24
"""So many photographs are shown."""
SIDE, BYTES = 320, 16_000
"""The longer side of a picture, in pixels, and how large its file should be."""


@dataclass(frozen=True)
class Found:
    """A photograph that was found.

    Attributes:
        name: in the index.
        rank: 1 for the best.
        score: the probability that a list starts with the tags, or how alike the lists of two photographs are.
        picture: None if its file cannot be read any more.
    """

    name: str
    rank: int
    score: float
    picture: Thumbnail | None


class Finder:
    """Searches an index. Safe for threads.

    Args:
        index: the folder of the index.
        annotator: the model with which it was made.
        root: as for :func:`tagrank.retrieval.open_index`.

    Raises:
        InputError: there is no index, it is damaged, or it was made with another model.
    """

    def __init__(self, index: Path, annotator: "Annotator", root: Path | None = None) -> None:
        self._photos = open_index(index, root)
        self._annotator = annotator
        self._lock = Lock()
        if self._photos.model != model_digest(annotator.ranker, annotator.vocabulary.tags):
            raise InputError(f"{index}: the index was made with another model")

    def __len__(self) -> int:
        return len(self._photos)

    @property
    def tags(self) -> Sequence[str]:
        """The tags that a query may have."""
        return self._photos.tags

    @property
    def positions(self) -> int:
        """How many tags a query may have."""
        return self._photos.positions

    def by_tags(self, tags: Sequence[str], ordered: bool = True) -> list[Found]:
        """The photographs whose lists most likely start with tags.

        Raises:
            InputError: as for :meth:`tagrank.retrieval.PhotoIndex.search`.
        """
        with self._lock:
            matches = self._photos.search(tags, ordered=ordered, top_k=TOP)
        return self._found(matches)

    def like(self, features: "Tensor") -> list[Found]:
        """The photographs whose lists are most like that of a photograph, by its features ``[D]``."""
        with self._lock:
            matches = self._photos.similar(self._photos.gains_of(self._annotator, features), TOP)
        return self._found(matches)

    def content(self, name: str) -> bytes:
        """The file of a photograph of the index.

        Raises:
            InputError: it is not in the index, or its file cannot be read.
        """
        if name not in self._photos:
            raise InputError(f"{name}: no photograph of this index")
        try:
            return self._photos.path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: its file cannot be read any more") from error

    def _found(self, matches: "Sequence[Match]") -> list[Found]:
        return [Found(*match, self._picture(match.image)) for match in matches]

    def _picture(self, name: str) -> Thumbnail | None:
        try:
            return thumbnail(self._photos.path(name), SIDE, BYTES)
        except InputError:
            return None
