"""Replaces an index by one of the photographs as they are now, at once, and computes only what is new.

While an update computes, the index stays as it was. What is computed goes to an index of its own in the folder
``update``, so that an interrupted update goes on where it stopped. When all is there, shards of old and new photographs
are written beside the old ones, in the order of a new index, and ``index.json`` is replaced. A shard that would be the
same stays.
"""

import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from tagrank.data.files import leftovers, temporary_path
from tagrank.retrieval.index import IndexWriter, read_photos
from tagrank.retrieval.index_file import Contents, read_contents
from tagrank.retrieval.photo_shard import HalfArray, Shard, Stamp

if TYPE_CHECKING:
    from torch import Tensor

    from tagrank.annotator import Annotator

UPDATE = "update"


def order(name: str) -> list[str]:
    """The key by which photographs are in an index: the parts of their paths, as files are listed in folders."""
    return name.split("/")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph that an index has.

    Attributes:
        name: of the photograph.
        stamp: of its file, when its predictions were computed.
        shard: where its predictions are.
        number: the position of the shard in the index; -1 if it is not the index's own.
        row: of the photograph in the shard.
    """

    name: str
    stamp: Stamp
    shard: Shard
    number: int
    row: int


class IndexUpdate:
    """An update of an index, which is created if necessary. A context manager; only one writer at a time.

    Say which photographs :meth:`keep` their predictions, :meth:`add` the others, and :meth:`commit`. Without that the
    index stays as it was, and what was added is in :attr:`computed` of the next update. Only a new index grows while
    photographs are added, in their order: there is nothing to protect.

    Args:
        folder: an index, an empty folder, or a folder that does not exist yet.
        annotator: the model.
        photos_per_shard: how many photographs a shard has, and at most how many are lost if the process is killed.
        root: the folder that names begin in if they are relative paths; None leaves what the index says.

    Attributes:
        photos: the photographs that the index has, by their names.
        computed: those that an interrupted update added.
        root: the folder that names begin in; None if that is not known.

    Raises:
        InputError: as for :class:`IndexWriter`.
    """

    def __init__(
        self, folder: str | Path, annotator: "Annotator", photos_per_shard: int = 4096, root: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self._per_shard = photos_per_shard
        self._annotator = annotator
        self._kept: dict[str, Photo] = {}
        self._added: list[str] = []
        with ExitStack() as stack:
            self._index = stack.enter_context(IndexWriter(self.folder, annotator, photos_per_shard, root))
            for left in leftovers(self.folder, UPDATE):
                shutil.rmtree(left)
            contents = read_contents(self.folder)
            self.photos = _photos(self.folder, contents, self._index.photos())
            self.root = root or contents.root
            self._new_root = self.root != contents.root
            self._shards = contents.shards
            self._writer: IndexWriter | None = None
            self.computed: dict[str, Photo] = {}
            if (self.folder / UPDATE).exists():
                self._writer = stack.enter_context(IndexWriter(self.folder / UPDATE, annotator, photos_per_shard))
                waiting = self._writer.folder
                self.computed = _photos(waiting, read_contents(waiting), self._writer.photos(), -1)
            elif not contents.shards:
                self._writer = self._index
            self._stack = stack.pop_all()

    def keep(self, photo: Photo, name: str | None = None, stamp: Stamp | None = None) -> None:
        """Have the predictions of a photograph that is there, or was computed, in the index.

        Args:
            photo: of :attr:`photos` or :attr:`computed`.
            name: its name from now on.
            stamp: its stamp from now on.
        """
        kept = replace(photo, name=name or photo.name, stamp=stamp or photo.stamp)
        self._kept[kept.name] = kept

    def add(self, names: Sequence[str], probabilities: "Tensor", stamps: Sequence[Stamp] | None = None) -> None:
        """Add predictions, in the place of those that a photograph of this name has. As :meth:`IndexWriter.add`."""
        if self._writer is None:
            writer = IndexWriter(self.folder / UPDATE, self._annotator, self._per_shard)
            self._writer = self._stack.enter_context(writer)
        self._writer.remove(self._writer.done & set(names))  # an earlier state of the file
        self._writer.add(names, probabilities, stamps)
        self._added.extend(names)

    def commit(self) -> int:
        """Switch to the photographs that were kept and added. Returns how many there are.

        Raises:
            InputError: the disk is full, or a shard is damaged. The index stays as it was.
        """
        if self._writer is self._index:
            self._index.close()
            return len(self._added)
        if self._writer is not None:
            self._writer.close()
            computed, contents = self._writer.folder, read_contents(self._writer.folder)
            added = _photos(computed, contents, read_photos(computed, contents), -1)
            self._kept.update((name, added[name]) for name in self._added)
        photos = [self._kept[name] for name in sorted(self._kept, key=order)]
        groups = [photos[start : start + self._per_shard] for start in range(0, len(photos), self._per_shard)]
        staying = [self._same_shard(group) for group in groups]
        if self._new_root or staying != list(range(len(self._shards))):
            load = lru_cache(maxsize=4)(Shard.rows)
            self._index.replace_shards(
                _gather(group, load) if number is None else number
                for number, group in zip(staying, groups, strict=True)
            )
        self._stack.close()
        self._discard()
        return len(photos)

    def __enter__(self) -> "IndexUpdate":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _discard(self) -> None:
        """Delete what was computed, now that it is in the index. It goes at once: half of it would be damaged."""
        folder = self.folder / UPDATE
        if folder.exists():
            gone = temporary_path(folder)
            os.replace(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _same_shard(self, group: Sequence[Photo]) -> int | None:
        """The position of the index's shard that has just these photographs."""
        number = group[0].number
        same = (
            number >= 0
            and len(group) == self._shards[number]
            and all(p.number == number and p.row == row and self.photos.get(p.name) == p for row, p in enumerate(group))
        )
        return number if same else None


def _photos(
    folder: Path, contents: Contents, rows: Iterable[tuple[int, str, Stamp]], number: int | None = None
) -> dict[str, Photo]:
    """The photographs of an index by name, in its order, from :func:`read_photos`."""
    shards = [Shard(folder, position, count, contents) for position, count in enumerate(contents.shards)]
    starts = [0, *accumulate(contents.shards)]
    photos: dict[str, Photo] = {}
    for row, name, stamp in rows:
        position = bisect_right(starts, row) - 1
        own = position if number is None else number
        photos[name] = Photo(name, stamp, shards[position], own, row - starts[position])
    return photos


def _gather(
    group: Sequence[Photo], load: Callable[[Shard], tuple[HalfArray, HalfArray]]
) -> tuple[list[str], list[Stamp], HalfArray, HalfArray]:
    """The content of a shard from rows of others."""
    log_p = gains = np.empty(0, np.float16)
    places: dict[Shard, list[int]] = {}
    for place, photo in enumerate(group):
        places.setdefault(photo.shard, []).append(place)
    for shard, there in places.items():
        rows = [group[place].row for place in there]
        all_log_p, all_gains = load(shard)
        if not log_p.size:
            log_p = np.empty((*all_log_p.shape[:2], len(group)), np.float16)
            gains = np.empty((len(group), all_gains.shape[1]), np.float16)
        log_p[:, :, there], gains[there] = all_log_p[:, :, rows], all_gains[rows]
    return [photo.name for photo in group], [photo.stamp for photo in group], log_p, gains
