"""The index on disk: a model's predictions for many photographs.

An index is a folder that :mod:`tagrank.data.shards` describes, with these files::

    index.json                   {"format": 1, "model": DIGEST, "tags": [...], "positions": S, "shards": [n, n, ...],
                                  "digests": [DIGEST, DIGEST, ...], "removed": [ROW, ROW, ...],
                                  "numbers": [NUMBER, NUMBER, ...], "root": FOLDER}
    photos-00000.safetensors     n photographs (:mod:`tagrank.retrieval.photo_shard`)
    ...
    update/                      an index of what an update has computed so far (:mod:`tagrank.retrieval.update`)

A photograph leaves the index when the number of its row, counted over all shards, is written to ``removed``. Its shard
stays as it is.

A writer that is killed loses at most ``photos_per_shard`` photographs. Who reads an index needs no torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagrank.data.shards import Entry, ShardWriter, shard_name
from tagrank.errors import InputError
from tagrank.model_files import model_digest
from tagrank.retrieval.index_file import Contents, read_contents
from tagrank.retrieval.photo_shard import PREFIX, UNKNOWN, HalfArray, Shard, Stamp, encode_shard

if TYPE_CHECKING:
    from torch import Tensor

    from tagrank.annotator import Annotator

FLOOR = -100.0
"""The smallest log probability that is stored."""


def photo_tables(probabilities: "Tensor") -> tuple[HalfArray, HalfArray]:
    """Compute what an index stores for photographs.

    Args:
        probabilities: ``[n, S, V + 1]``, from :meth:`tagrank.annotator.Annotator.probabilities`, without feedback.

    Returns:
        ``log p_t(v)`` ``[n, S, V]``, and the expected gains ``sum_t w_t P(list reaches t) p_t(v)`` ``[n, V]``,
        ``w_t = 1/log2(1+t)``, divided by their Euclidean length; both float16.
    """
    from tagrank.decode.positions import expected_gains

    p = probabilities.double().cpu().numpy()
    gains = expected_gains(p)
    gains /= np.maximum(np.linalg.norm(gains, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    log_p = np.log(np.maximum(p[..., :-1], np.exp(FLOOR)))
    return log_p.astype(np.float16), gains.astype(np.float16)


def read_photos(folder: Path, contents: Contents) -> Iterator[tuple[int, str, Stamp]]:
    """The photographs of an index, in its order, without those that were removed: row, name and stamp."""
    removed, row = set(contents.removed), 0
    for number, count in enumerate(contents.shards):
        shard = Shard(folder, number, count, contents)
        for name, stamp in zip(shard.names(), shard.stamps(), strict=True):
            if row not in removed:
                yield row, name, stamp
            row += 1


class IndexWriter(ShardWriter):
    """Adds photographs to an index, which it creates if necessary. A context manager; only one writer at a time.

    To resume after an interruption, leave out the photographs in :attr:`done`.

    Args:
        folder: an index, an empty folder, or a folder that does not exist yet.
        annotator: the model. It must be without feedback: with feedback, distributions depend on the chosen tags.
        photos_per_shard: how many photographs a shard has, and at most how many are lost if the process is killed.
        root: the folder that names begin in if they are relative paths; None leaves what the index says.

    Raises:
        InputError: the model has feedback, the index is of another model or damaged, another process is writing to it,
            or the folder has other files in it.
    """

    kind = "an index"
    prefix = PREFIX
    expected = "photographs that are not there yet"

    def __init__(
        self, folder: str | Path, annotator: "Annotator", photos_per_shard: int = 4096, root: str | None = None
    ) -> None:
        if photos_per_shard < 1:
            raise ValueError(f"photos_per_shard: expected at least 1, got {photos_per_shard}")
        if annotator.ranker.feedback:
            raise InputError(
                "an index needs distributions that do not depend on chosen tags; this model reads its own tags: train "
                "a model with the image at every step and without feedback"
            )
        self._contents = Contents(
            model_digest(annotator.ranker, annotator.vocabulary.tags),
            annotator.vocabulary.tags,
            annotator.ranker.steps,
            root=root,
        )
        self._numbers: tuple[int, ...] = ()
        self._parts: list[tuple[list[str], list[Stamp], HalfArray, HalfArray]] = []
        self._rows: dict[str, int] = {}
        self._stamps: dict[str, Stamp] = {}
        self._removed: set[int] = set()
        super().__init__(folder, photos_per_shard)

    def add(self, names: Sequence[str], probabilities: "Tensor", stamps: Sequence[Stamp] | None = None) -> None:
        """Add photographs. They are written when their shard is full, or when the writer is closed.

        Args:
            names: ``n`` names that are not in :attr:`done`.
            probabilities: ``[n, S, V + 1]``, from :meth:`tagrank.annotator.Annotator.probabilities`.
            stamps: of the ``n`` files, from before they were read; None if they are not known.

        Raises:
            ValueError: the shape is wrong, a photograph is there already, or the writer is closed.
            InputError: the disk is full.
        """
        expected = (len(names), self._contents.positions, len(self._contents.tags) + 1)
        if probabilities.shape != expected:
            raise ValueError(f"probabilities: expected shape {list(expected)}, got {list(probabilities.shape)}")
        self._check_new(names)
        self._parts.append((list(names), list(stamps or [UNKNOWN] * len(names)), *photo_tables(probabilities)))
        self._added(names)

    def stamp(self, name: str) -> Stamp:
        """The stamp of a photograph's file when the photograph was added; :data:`UNKNOWN` if it is not known."""
        return self._stamps.get(name, UNKNOWN)

    def photos(self) -> Iterator[tuple[int, str, Stamp]]:
        """What :func:`read_photos` read when the writer was made, without what was removed since."""
        return ((row, name, self._stamps[name]) for name, row in self._rows.items())

    def remove(self, names: Iterable[str]) -> None:
        """Remove photographs that an earlier writer added, at once. They may be added again.

        Raises:
            InputError: the disk is full.
        """
        gone = [name for name in names if name in self._rows]
        if gone:
            self._removed.update(self._rows.pop(name) for name in gone)
            self._done -= set(gone)
            self._write_index(self._shards)

    def replace_shards(
        self, shards: Iterable[int | tuple[Sequence[str], Sequence[Stamp], HalfArray, HalfArray]]
    ) -> None:
        """Put other shards in the place of all that there are, at once, and close.

        Readers that have the old shards open keep them: the system deletes a file when nobody has it open.

        Args:
            shards: each the position of a shard that stays, or names, stamps, ``log_p`` ``[S, V, n]`` and gains
                ``[n, V]`` of a new one.

        Raises:
            InputError: the disk is full. The index stays as it was.
        """
        if self._waiting:
            raise ValueError("replace_shards: photographs wait for a shard")
        before = self._file_numbers(len(self._shards))
        entries: list[Entry] = []
        numbers: list[int] = []
        following = max(before, default=-1) + 1
        for shard in shards:
            if isinstance(shard, int):
                entries.append(self._shards[shard])
                numbers.append(before[shard])
                continue
            content, digest = encode_shard(*shard)
            self._write(shard_name(PREFIX, following), [content])
            entries.append(Entry(len(shard[0]), digest))
            numbers.append(following)
            following += 1
        self._numbers, self._removed, self._shards = tuple(numbers), set(), entries
        self._write_index(entries)
        for number in set(before) - set(numbers):
            (self.folder / shard_name(PREFIX, number)).unlink()
        self.close()

    def _read(self) -> tuple[Sequence[Entry], set[str]]:
        there = read_contents(self.folder)
        empty = replace(there, shards=(), digests=(), removed=(), numbers=(), root=self._contents.root)
        if empty != self._contents:
            raise InputError(f"{self.folder}: is the index of another model; use another folder")
        self._removed = set(there.removed)
        self._numbers = there.numbers
        self._contents = replace(self._contents, root=self._contents.root or there.root)
        for row, name, stamp in read_photos(self.folder, there):
            self._rows[name], self._stamps[name] = row, stamp
        return [Entry(*entry) for entry in zip(there.shards, there.digests, strict=True)], set(self._rows)

    def _file_numbers(self, count: int) -> Sequence[int]:
        known = self._numbers[:count]
        following = max(self._numbers, default=-1) + 1
        return [*known, *range(following, following + count - len(known))]

    def _index(self, shards: Sequence[Entry]) -> dict[str, Any]:
        return replace(
            self._contents,
            shards=tuple(entry.size for entry in shards),
            digests=tuple(entry.digest for entry in shards),
            removed=tuple(sorted(self._removed)),
            numbers=tuple(self._file_numbers(len(shards))),
        ).record()

    def _shard(self, count: int) -> tuple[bytes, str]:
        names = [name for part, *_ in self._parts for name in part]
        stamps = [stamp for _, part, *_ in self._parts for stamp in part]
        log_p = np.concatenate([part for _, _, part, _ in self._parts])
        gains = np.concatenate([part for _, _, _, part in self._parts])
        self._parts = [(names, stamps, log_p, gains)]
        return encode_shard(names[:count], stamps[:count], log_p[:count].transpose(1, 2, 0), gains[:count])

    def _forget(self, count: int) -> None:
        ((names, stamps, log_p, gains),) = self._parts
        self._parts = [(names[count:], stamps[count:], log_p[count:], gains[count:])]
