"""A shard of an index: the predictions for some photographs, laid out so that a query reads only its own columns.

A shard is a safetensors file of n photographs::

    "log_p"    float16 [S, V, n]   log p_t(v), contiguous for one position t and tag v
    "gains"    float16 [n, V]      expected gain of each tag, scaled to length 1
    "names"    uint8 [...]         the names in UTF-8, one after the other
    "offsets"  int64 [n + 1]       where each name begins, and where the last name ends
    "sums"     int64 [S V + 1]     the CRC-32 of each log_p_t(v), and of gains
    "name_sums" int64 [n]          the CRC-32 of each name
    "stamps"   int64 [n, 3]        the size of each file, the time of its last change, -1 if unknown, and a CRC-32
    "contents" uint8 [n, 16]       a digest of each file's content, 0 if unknown

The digest of a shard is of its ``sums``. It is compared when the index is opened; a CRC-32 is compared when what it
belongs to is read. Shards that an earlier version wrote lack some or all of the last four.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tagrank.data.mapped import map_arrays, will_need
from tagrank.data.shards import INDEX, shard_name
from tagrank.errors import InputError
from tagrank.retrieval.index_file import Contents

PREFIX = "photos"
CONTENT = 16
"""The length of a digest of a file's content, in bytes."""

HalfArray = NDArray[np.float16]


class Stamp(NamedTuple):
    """What tells whether a file changed: its size in bytes, the time of its last change in nanoseconds, its content.

    ``content`` is a digest, empty if it is not known. It tells that a file is the same after its time changed, or under
    another name.
    """

    size: int
    time: int
    content: bytes = b""

    @classmethod
    def of(cls, path: str | Path) -> "Stamp | None":
        """The stamp of a file without its content, or None if there is no such file.

        Raises:
            OSError: that cannot be found out.
        """
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(status.st_size, status.st_mtime_ns)

    def with_content(self, path: str | Path) -> "Stamp":
        """The same stamp with the digest of the file's content, unless the file cannot be read or changed meanwhile."""
        digest = hashlib.blake2b(digest_size=CONTENT)
        try:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            same = Stamp.of(path) == (*self[:2], b"")
        except (OSError, ValueError):
            return self
        return self._replace(content=digest.digest()) if same else self

    def is_of(self, other: "Stamp") -> bool:
        """Whether the size and the time are the same, and known."""
        return self[:2] == other[:2] != UNKNOWN[:2]

    def checksum(self) -> int:
        """The CRC-32 of the stamp."""
        return zlib.crc32(struct.pack("<qq", self.size, self.time) + self.content)


UNKNOWN = Stamp(-1, -1)


def encode_shard(
    names: Sequence[str], stamps: Sequence[Stamp], log_p: HalfArray, gains: HalfArray
) -> tuple[bytes, str]:
    """The content of a shard, and its digest.

    Args:
        names: of ``n`` photographs.
        stamps: of their files.
        log_p: ``[S, V, n]``.
        gains: ``[n, V]``.
    """
    from safetensors.numpy import save

    encoded = [os.fsencode(name) for name in names]
    log_p, gains = np.ascontiguousarray(log_p), np.ascontiguousarray(gains)
    sums = np.array([zlib.crc32(c.data) for table in log_p for c in table] + [zlib.crc32(gains.data)], dtype=np.int64)
    contents = b"".join(stamp.content.ljust(CONTENT, b"\0") for stamp in stamps)
    content = save(
        {
            "log_p": log_p,
            "gains": gains,
            "names": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
            "sums": sums,
            "stamps": np.array([(*stamp[:2], stamp.checksum()) for stamp in stamps], dtype=np.int64),
            "contents": np.frombuffer(contents, dtype=np.uint8).reshape(len(names), CONTENT),
            "name_sums": np.array([zlib.crc32(name) for name in encoded], dtype=np.int64),
        }
    )
    return content, _digest(sums)


class Shard:
    """A memory-mapped part of an index: only what is used is read, and what is read is checked.

    Each method raises an InputError if what it reads is damaged.

    Raises:
        InputError: the file is missing or damaged, or does not fit the index.
    """

    def __init__(self, folder: Path, number: int, count: int, contents: Contents) -> None:
        tags = len(contents.tags)
        self._path = folder / shard_name(PREFIX, contents.numbers[number] if contents.numbers else number)
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

    def rows(self) -> tuple[HalfArray, HalfArray]:
        """``log_p`` ``[S, V, n]`` and ``gains`` ``[n, V]``, all of them, as a copy in memory."""
        positions, tags, _ = self._log_p.shape
        log_p = np.stack([[self.log_p(position, tag) for tag in range(tags)] for position in range(positions)])
        return log_p, np.array(self.gains())

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

    def stamps(self) -> list[Stamp]:
        """The stamps of all photographs; :data:`UNKNOWN` where they are damaged or an earlier version wrote none."""
        from safetensors import safe_open

        count = len(self._gains)
        with safe_open(self._path, framework="np") as file:
            kept = set(file.keys())
            rows = file.get_tensor("stamps") if "stamps" in kept else None
            contents = file.get_tensor("contents") if "contents" in kept else np.zeros((count, CONTENT), np.uint8)
        if rows is None or rows.shape != (count, 3) or contents.shape != (count, CONTENT):
            return [UNKNOWN] * count
        stamps = []
        digests, unknown = contents.tobytes(), bytes(CONTENT)
        for row, (size, time, checksum) in enumerate(rows.tolist()):
            content = digests[row * CONTENT : (row + 1) * CONTENT]
            stamp = Stamp(size, time, b"" if content == unknown else content)
            stamps.append(stamp if stamp.checksum() == checksum else UNKNOWN)
        return stamps

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
