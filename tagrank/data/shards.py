"""Folders of shards and an index, added to by one process at a time: the feature store and the index of photographs.

A folder has ``index.json`` and shards ``PREFIX-00000.safetensors``, ``PREFIX-00001.safetensors``, ... The index names
the shards that count. Each file appears as a whole: first the shard is written, then the index. A writer may be killed
at any moment; it loses only the entries that were not yet in a shard. The next writer deletes what it left behind.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, TypeVar

from tagrank.data.files import leftovers, lock_folder, reason, write_atomically
from tagrank.data.sealed import seal
from tagrank.errors import InputError

INDEX = "index.json"

Writer = TypeVar("Writer", bound="ShardWriter")


def shard_name(prefix: str, number: int) -> str:
    """The file name of a shard."""
    return f"{prefix}-{number:05d}.safetensors"


class Entry(NamedTuple):
    """What the index says of a shard: how many entries it has, and a digest; None if an earlier version wrote it."""

    size: int
    digest: str | None


class ShardWriter(ABC):
    """Collects entries until they fill a shard, and continues where an earlier writer stopped. A context manager.

    Args:
        folder: a folder that an earlier writer filled, an empty folder, or not there yet.
        per_shard: how many entries a shard has.

    Raises:
        InputError: another process is writing to the folder, the folder cannot be made or has other files in it, or
            :meth:`_read` refuses what an earlier writer left.
    """

    #: What the folder is, in an error message: "a feature store".
    kind: ClassVar[str]
    #: With what the file names of shards begin.
    prefix: ClassVar[str]
    #: Which names may be added, in an error message.
    expected: ClassVar[str]

    def __init__(self, folder: str | Path, per_shard: int) -> None:
        self.folder = Path(folder)
        self._per_shard = per_shard
        self._shards: list[Entry] = []
        self._waiting = 0
        self._closed = False
        self._lock = lock_folder(self.folder)
        try:
            self._done = self._resume()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def done(self) -> Set[str]:
        """All names that were added, in this run or an earlier one."""
        return self._done

    def close(self) -> None:
        """Write the entries that wait for a shard, and let other writers in. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._waiting:
                self._flush(self._waiting)
        finally:
            os.close(self._lock)

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error too: the entries are good, and took time to compute.
        self.close()

    @abstractmethod
    def _read(self) -> tuple[Sequence[Entry], set[str]]:
        """The shards, and the names of all entries, from a folder that has an index.

        Raises:
            InputError: the folder is damaged, or holds entries that must not be mixed with this writer's.
        """

    @abstractmethod
    def _index(self, shards: Sequence[Entry]) -> Mapping[str, Any]:
        """The index of these shards, as JSON."""

    @abstractmethod
    def _shard(self, count: int) -> tuple[bytes, str]:
        """The content of a shard of the first ``count`` entries that wait, and its digest."""

    @abstractmethod
    def _forget(self, count: int) -> None:
        """Drop the first ``count`` entries that wait."""

    def _file_numbers(self, count: int) -> Sequence[int]:
        """The numbers in the file names of the first ``count`` shards."""
        return range(count)

    def _check_new(self, names: Sequence[str]) -> None:
        if self._closed:
            raise ValueError("add: the writer is closed")
        twice = [name for name in names if name in self._done]
        if twice or len(set(names)) < len(names):
            raise ValueError(f"names: expected {self.expected}, each once; got {some(twice or names)}")

    def _added(self, names: Sequence[str]) -> None:
        self._done.update(names)
        self._waiting += len(names)
        while self._waiting >= self._per_shard:
            self._flush(self._per_shard)

    def _resume(self) -> set[str]:
        """Read what earlier writers wrote, and delete what a killed one left. Returns the names that are there."""
        done: set[str] = set()
        if (self.folder / INDEX).exists():
            shards, done = self._read()
            self._shards = list(shards)
        shard = rf"{self.prefix}-\d{{5,}}\.safetensors"
        present = {entry.name for entry in self.folder.iterdir()}
        stale = {path.name for path in leftovers(self.folder, rf"{re.escape(INDEX)}|{shard}")}
        if INDEX in present:
            listed = {shard_name(self.prefix, number) for number in self._file_numbers(len(self._shards))}
            stale |= {name for name in present - listed if re.fullmatch(shard, name)}
        elif present - stale:
            raise InputError(f"{self.folder}: expected {self.kind} or an empty folder, got {some(sorted(present))}")
        else:
            self._write_index([])
        for name in stale:
            (self.folder / name).unlink()
        return done

    def _flush(self, count: int) -> None:
        """Write the first ``count`` entries as a shard, then the index. When either fails, the entries still wait."""
        content, digest = self._shard(count)
        shards = [*self._shards, Entry(count, digest)]
        self._write(shard_name(self.prefix, self._file_numbers(len(shards))[-1]), [content])
        self._write_index(shards)
        self._shards = shards
        self._forget(count)
        self._waiting -= count

    def _write_index(self, shards: Sequence[Entry]) -> None:
        self._write(INDEX, [seal(self._index(shards))])

    def _write(self, name: str, chunks: Sequence[bytes]) -> None:
        try:
            write_atomically(self.folder / name, chunks)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {reason(error)}") from error


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"
