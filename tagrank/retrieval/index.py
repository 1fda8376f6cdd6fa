"""The index on disk: a model's predictions for each photograph, laid out so that a query reads only its own columns.

An index is a folder that :mod:`tagrank.data.shards` describes, with these files::

    index.json                   {"format": 1, "model": DIGEST, "tags": [...], "positions": S, "shards": [n, n, ...],
                                  "digests": [DIGEST, DIGEST, ...], "removed": [ROW, ROW, ...]}
    photos-00000.safetensors     n photographs:
                                   "log_p"    float16 [S, V, n]   log p_t(v), contiguous for one position t and tag v
                                   "gains"    float16 [n, V]      expected gain of each tag, scaled to length 1
                                   "names"    uint8 [...]         the names in UTF-8, one after the other
                                   "offsets"  int64 [n + 1]       where each name begins, and where the last name ends
                                   "sums"     int64 [S V + 1]     the CRC-32 of each log_p_t(v), and of gains
                                   "name_sums" int64 [n]          the CRC-32 of each name
                                   "stamps"   int64 [n, 3]        the size of each file, the time of its last change,
                                                                  -1 if unknown, and the CRC-32 of both
    ...

The digest of a shard is of its ``sums``. It is compared when the index is opened; a CRC-32 is compared when what it
belongs to is read. Shards that an earlier version wrote have none of the three, and no stamps.

A photograph leaves the index when the number of its row, counted over all shards, is written to ``removed``. Its shard
stays as it is.

A writer that is killed loses at most ``photos_per_shard`` photographs. Who reads an index needs no torch.
"""

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tagrank.data.mapped import map_arrays, will_need
from tagrank.data.schema import Positive, Rule, Text, read_as
from tagrank.data.shards import INDEX, Entry, ShardWriter, shard_name
from tagrank.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from tagrank.annotator import Annotator

FORMAT = 1
PREFIX = "photos"
FLOOR = -100.0
"""The smallest log probability that is stored."""

HalfArray = NDArray[np.float16]


@dataclass(frozen=True)
class Contents:
    """The content of ``index.json``.

    Attributes:
        model: :func:`digest` of the model that made the predictions.
        tags: the model's tags, in the order of its vocabulary.
        positions: ``S`` of the model.
        shards: how many photographs each shard has.
        digests: the digest of each shard; None if an earlier version wrote it.
        removed: the rows of photographs that left the index, in ascending order.
    """

    model: str
    tags: tuple[str, ...]
    positions: int
    shards: tuple[int, ...] = ()
    digests: tuple[str | None, ...] = ()
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class _File:
    format: Literal[1]
    model: str
    tags: Annotated[tuple[Text, ...], Rule("at least one tag", bool)]
    positions: Positive
    shards: tuple[Positive, ...]
    digests: tuple[str | None, ...] | None = None
    removed: tuple[int, ...] = ()


class Stamp(NamedTuple):
    """What tells whether a file changed: its size in bytes, and the time of its last change in nanoseconds."""

    size: int
    time: int

    @classmethod
    def of(cls, path: str | Path) -> "Stamp | None":
        """The stamp of a file, or None if there is no such file.

        Raises:
            OSError: that cannot be found out.
        """
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(status.st_size, status.st_mtime_ns)


UNKNOWN = Stamp(-1, -1)


def digest(annotator: "Annotator") -> str:
    """A digest of a model's vocabulary and of its ranker's configuration and weights."""
    value = hashlib.sha256(json.dumps([annotator.ranker.config(), annotator.vocabulary.tags]).encode())
    for name, tensor in sorted(annotator.ranker.state_dict().items()):
        value.update(name.encode())
        value.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return value.hexdigest()[:32]


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


class IndexWriter(ShardWriter):
    """Adds photographs to an index, which it creates if necessary. A context manager; only one writer at a time.

    To resume after an interruption, leave out the photographs in :attr:`done`.

    Args:
        folder: an index, an empty folder, or a folder that does not exist yet.
        annotator: the model. It must be without feedback: with feedback, distributions depend on the chosen tags.
        photos_per_shard: how many photographs a shard has, and at most how many are lost if the process is killed.

    Raises:
        InputError: the model has feedback, the index is of another model or damaged, another process is writing to it,
            or the folder has other files in it.
    """

    kind = "an index"
    prefix = PREFIX
    expected = "photographs that are not there yet"

    def __init__(self, folder: str | Path, annotator: "Annotator", photos_per_shard: int = 4096) -> None:
        if photos_per_shard < 1:
            raise ValueError(f"photos_per_shard: expected at least 1, got {photos_per_shard}")
        if annotator.ranker.feedback:
            raise InputError(
                "an index needs distributions that do not depend on chosen tags; this model reads its own tags: train "
                "a model with the image at every step and without feedback"
            )
        self._contents = Contents(digest(annotator), annotator.vocabulary.tags, annotator.ranker.steps)
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

    def _read(self) -> tuple[Sequence[Entry], set[str]]:
        there = read_contents(self.folder)
        if replace(there, shards=(), digests=(), removed=()) != self._contents:
            raise InputError(f"{self.folder}: is the index of another model; use another folder")
        self._removed = set(there.removed)
        row = 0
        for number, count in enumerate(there.shards):
            names = Shard(self.folder, number, count, there).names()
            stamps = _read_stamps(self.folder / shard_name(PREFIX, number), count)
            for name, stamp in zip(names, stamps, strict=True):
                if row not in self._removed:
                    self._rows[name], self._stamps[name] = row, stamp
                row += 1
        return [Entry(*entry) for entry in zip(there.shards, there.digests, strict=True)], set(self._rows)

    def _index(self, shards: Sequence[Entry]) -> dict[str, Any]:
        contents = replace(
            self._contents,
            shards=tuple(entry.size for entry in shards),
            digests=tuple(entry.digest for entry in shards),
            removed=tuple(sorted(self._removed)),
        )
        record = {"format": FORMAT, **vars(contents)}
        if not self._removed:  # earlier versions do not know it
            del record["removed"]
        return record

    def _shard(self, count: int) -> tuple[bytes, str]:
        from safetensors.numpy import save

        names = [name for part, *_ in self._parts for name in part]
        stamps = [stamp for _, part, *_ in self._parts for stamp in part]
        log_p = np.concatenate([part for _, _, part, _ in self._parts])
        gains = np.concatenate([part for _, _, _, part in self._parts])
        self._parts = [(names, stamps, log_p, gains)]
        encoded = [os.fsencode(name) for name in names[:count]]
        by_column = np.ascontiguousarray(log_p[:count].transpose(1, 2, 0))
        sums = np.array(
            [zlib.crc32(c.data) for table in by_column for c in table] + [zlib.crc32(gains[:count].copy().data)]
        )
        content = save(
            {
                "log_p": by_column,
                "gains": gains[:count].copy(),
                "names": np.frombuffer(b"".join(encoded), dtype=np.uint8),
                "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
                "sums": sums.astype(np.int64),
                "stamps": np.array([(*stamp, _stamp_sum(stamp)) for stamp in stamps[:count]], dtype=np.int64),
                "name_sums": np.array([zlib.crc32(name) for name in encoded], dtype=np.int64),
            }
        )
        return content, _digest(sums)

    def _forget(self, count: int) -> None:
        ((names, stamps, log_p, gains),) = self._parts
        self._parts = [(names[count:], stamps[count:], log_p[count:], gains[count:])]


class Shard:
    """A memory-mapped part of an index: only what is used is read, and what is read is checked.

    Each method raises an InputError if what it reads is damaged.

    Raises:
        InputError: the file is missing or damaged, or does not fit the index.
    """

    def __init__(self, folder: Path, number: int, count: int, contents: Contents) -> None:
        tags = len(contents.tags)
        self._path = folder / shard_name(PREFIX, number)
        expected: dict[str, tuple[type, list[int | None]]] = {
            "log_p": (np.float16, [contents.positions, tags, count]),
            "gains": (np.float16, [count, tags]),
            "names": (np.uint8, [None]),
            "offsets": (np.int64, [count + 1]),
        }
        digest = contents.digests[number] if contents.digests else None
        if digest is not None:
            expected |= {"sums": (np.int64, [contents.positions * tags + 1]), "name_sums": (np.int64, [count])}
        arrays = map_arrays(self._path, expected)
        self._log_p, self._gains = arrays["log_p"], arrays["gains"]
        self._names, self._offsets = arrays["names"], arrays["offsets"]
        self._sums, self._name_sums = arrays.get("sums"), arrays.get("name_sums")
        if self._sums is not None and _digest(self._sums) != digest:
            raise self._damaged(f"its digest is not the one in {INDEX}")
        self._sound: set[tuple[int, int]] = set()
        self._gains_sound = False

    def log_p(self, position: int, tag: int) -> HalfArray:
        """``log p_t(v)`` of each photograph, float16 ``[n]``."""
        column: HalfArray = self._log_p[position, tag]
        if (position, tag) not in self._sound:
            if not self._is(column, position * self._log_p.shape[1] + tag):
                raise self._damaged("log_p has another checksum than when it was written")
            if not (column <= 0).all():  # NaN too
                raise self._damaged("log_p: expected log probabilities, got NaN or a number above 0")
            self._sound.add((position, tag))
        return column

    def gains(self) -> HalfArray:
        """The expected gains of all photographs, float16 ``[n, V]``."""
        if not self._gains_sound:
            if not self._is(self._gains, -1):
                raise self._damaged("gains have another checksum than when they were written")
            # Their length is 1, up to rounding; 0 if the model expects no tags.
            if not ((self._gains >= 0) & (self._gains <= 1.01)).all():  # NaN too
                raise self._damaged("gains: expected numbers from 0 to 1")
            self._gains_sound = True
        gains: HalfArray = self._gains
        return gains

    def name(self, row: int) -> str:
        """The name of the photograph with this row number in the shard."""
        start, end = self._offsets[row : row + 2].tolist()
        if not 0 <= start <= end <= len(self._names):
            raise self._damaged("offsets: expected places in the names, in ascending order")
        encoded = self._names[start:end].tobytes()
        if self._name_sums is not None and zlib.crc32(encoded) != int(self._name_sums[row]):
            raise self._damaged("a name has another checksum than when it was written")
        return os.fsdecode(encoded)

    def names(self) -> list[str]:
        """The names of all photographs."""
        text, ends = self._names.tobytes(), self._all_offsets().tolist()
        encoded = [text[a:b] for a, b in pairwise(ends)]
        if self._name_sums is not None and [zlib.crc32(name) for name in encoded] != self._name_sums.tolist():
            raise self._damaged("a name has another checksum than when it was written")
        return [os.fsdecode(name) for name in encoded]

    def row(self, name: str) -> int | None:
        """The row number of a photograph in the shard, or None if it is not there."""
        wanted = np.frombuffer(os.fsencode(name), dtype=np.uint8)
        offsets = self._all_offsets()
        rows = np.flatnonzero(np.diff(offsets) == len(wanted))
        letters = self._names[offsets[rows, None] + np.arange(len(wanted))]
        found = rows[(letters == wanted).all(axis=1)]
        return int(found[0]) if len(found) else None

    def fetch(self, positions: Sequence[int], tags: Sequence[int]) -> None:
        """Have the columns ``log_p[positions[i], tags[i]]`` fetched from disk, without waiting for them."""
        for position, tag in zip(positions, tags, strict=True):
            will_need(self._log_p[position, tag])

    def fetch_gains(self) -> None:
        """Have ``gains`` fetched from disk, without waiting for them."""
        will_need(self._gains)

    def fetch_names(self) -> None:
        """Have the names fetched from disk, without waiting for them."""
        will_need(self._names)
        will_need(self._offsets)

    def _is(self, array: HalfArray, number: int) -> bool:
        """Whether an array has the checksum with this number; True if the shard has no checksums."""
        return self._sums is None or zlib.crc32(array.data) == int(self._sums[number])

    def _all_offsets(self) -> NDArray[np.int64]:
        offsets: NDArray[np.int64] = self._offsets
        if offsets[0] != 0 or offsets[-1] != len(self._names) or (offsets[1:] < offsets[:-1]).any():
            raise self._damaged("offsets: expected places in the names, in ascending order")
        return offsets

    def _damaged(self, how: str) -> InputError:
        return InputError(f"{self._path}: damaged: {how}")


def _digest(sums: NDArray[np.int64]) -> str:
    return hashlib.sha256(sums.astype("<i8").tobytes()).hexdigest()


def _stamp_sum(stamp: Stamp) -> int:
    return zlib.crc32(np.array(stamp, dtype="<i8").tobytes())


def _read_stamps(path: Path, count: int) -> list[Stamp]:
    """The stamps of a shard's photographs; :data:`UNKNOWN` where they are damaged or an earlier version wrote none."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        if "stamps" not in file.keys():  # noqa: SIM118
            return [UNKNOWN] * count
        rows = file.get_tensor("stamps")
    if rows.shape != (count, 3):
        return [UNKNOWN] * count
    stamps = [(Stamp(size, time), checksum) for size, time, checksum in rows.tolist()]
    return [stamp if _stamp_sum(stamp) == checksum else UNKNOWN for stamp, checksum in stamps]


def read_contents(folder: Path) -> Contents:
    """Read ``index.json`` of an index.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: expected an index of photographs, but {INDEX} is not there")
    file = read_as(path, _File, f"an index of format {FORMAT}", sealed=True)
    tags, shards = file.tags, file.shards
    if len(set(tags)) < len(tags):
        ((twice, _),) = Counter[str](tags).most_common(1)
        raise InputError(f"{path}: tags: expected each tag once, got {twice!r:.60} twice")
    digests = (None,) * len(shards) if file.digests is None else file.digests
    if len(digests) != len(shards):
        raise InputError(f"{path}: digests: expected one for each of {len(shards)} shards, got {len(digests)}")
    removed = file.removed
    if list(removed) != sorted(set(removed)) or (removed and not 0 <= removed[0] <= removed[-1] < sum(shards)):
        raise InputError(f"{path}: removed: expected rows of {sum(shards)} photographs in ascending order")
    return Contents(file.model, tags, file.positions, shards, digests, removed)
