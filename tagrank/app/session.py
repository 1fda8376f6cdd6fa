"""The photographs of one user, and the tags that the user accepted. It lives as long as the user's page."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from tagrank.app.proposals import Proposal
from tagrank.evaluation.thumbnails import Thumbnail

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Photograph:
    """A photograph of a user. Its file is gone; this is what is left of it.

    Attributes:
        name: its file's name.
        picture: it, as the page shows it.
        small: it, as one of many.
        features: of the backbone, ``[D]``.
        keywords: that its file has already.
        proposal: its list as it is now.
        accepted: the tags that the user chose, in their order.
    """

    name: str
    picture: Thumbnail
    small: Thumbnail
    features: "Tensor"
    keywords: tuple[str, ...]
    proposal: Proposal
    accepted: list[str] = field(default_factory=list)


class Session:
    """The photographs of one user by keys, in the order in which they came.

    Attributes:
        chosen: the key of the photograph that is shown large; None if there is none.
        received: how many files came, with those that were no photographs.
        downloads: how many files were downloaded.
        notices: what went wrong with the last that was done.
        found: the names of the photographs that the last search found.
        strip: what the page shows of all photographs; None if nothing was shown yet.
    """

    def __init__(self) -> None:
        self._photographs: dict[str, Photograph] = {}
        self._keys = 0
        self.chosen: str | None = None
        self.received = 0
        self.downloads = 0
        self.notices: list[str] = []
        self.found: list[str] = []
        self.strip: str | None = None

    def __len__(self) -> int:
        return len(self._photographs)

    def __iter__(self) -> Iterator[tuple[str, Photograph]]:
        # Two threads may serve the same user.
        return iter(list(self._photographs.items()))

    def __contains__(self, key: object) -> bool:
        return key in self._photographs

    def __getitem__(self, key: str) -> Photograph:
        return self._photographs[key]

    @property
    def untouched(self) -> bool:
        """Whether its user has done nothing yet."""
        return not (self.received or self._keys or self.found)

    @property
    def photograph(self) -> Photograph | None:
        """The photograph that is shown large."""
        return None if self.chosen is None else self._photographs[self.chosen]

    def add(self, photograph: Photograph) -> str:
        """Add a photograph, under a name that no other has, and choose it if it is the first.

        Returns:
            Its key.
        """
        photograph.name = new_name(photograph.name, (other.name for _, other in self))
        self._keys += 1
        key = str(self._keys)
        self._photographs[key] = photograph
        if self.chosen is None:
            self.chosen = key
        return key

    def choose(self, key: str) -> None:
        """Show a photograph large. Nothing happens if it is not there."""
        if key in self._photographs:
            self.chosen = key

    def remove(self, key: str) -> None:
        """Take a photograph away. The one after it is shown, or the last one."""
        keys = list(self._photographs)
        if key not in self._photographs:
            return
        place = keys.index(key)
        del self._photographs[key]
        keys.remove(key)
        if self.chosen == key:
            self.chosen = keys[min(place, len(keys) - 1)] if keys else None


def new_name(name: str, others: Iterable[str]) -> str:
    """A name that is not among the others: ``a.jpg``, ``a (2).jpg``, ..."""
    taken, path, number, new = set(others), PurePath(name), 1, name
    while new in taken:
        number += 1
        new = f"{path.stem} ({number}){path.suffix}"
    return new
