"""A folder of shards and an index, to which one process at a time adds: the common part of its writers.

The index is the truth: a shard counts once the index lists it. Index and shards are replaced as a whole, so a writer
may be killed at any moment. The next writer removes the files that it left.
"""

import contextlib
import fcntl
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

from tagrank.data.files import reason, write_atomically
from tagrank.errors import InputError

INDEX = "index.json"
Writer = TypeVar("Writer", bound="ShardWriter")


def shard_name(stem: str, number: int) -> str:
    """The file of a shard: ``features-00000.safetensors`` is the first with the stem ``features``."""
    return f"{stem}-{number:05d}.safetensors"


class ShardWriter(ABC):
    """Collects entries until they fill a shard, and continues where an earlier writer stopped. A context manager.

    Args:
        folder: a folder that such a writer made, an empty one, or one to make.
        per_shard: how many entries a shard has.

    Raises:
        InputError: another process is writing to the folder, or it cannot be made; and as :meth:`_resume`.
    """

    #: What the folder is, for messages: ``a feature store``.
    kind: ClassVar[str]
    #: What names must be to be added, for messages.
    expected: ClassVar[str]
    #: The beginning of the shards' file names, see :func:`shard_name`.
    stem: ClassVar[str]

    def __init__(self, folder: str | Path, per_shard: int) -> None:
        self.folder = Path(folder)
        self._per_shard = per_shard
        self._count = 0
        self._closed = False
        self._lock = _lock(self.folder)
        try:
            self._done = self._resume()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def done(self) -> Set[str]:
        """All names that were added, by this writer or an earlier one."""
        return self._done

    def close(self) -> None:
        """Write the remaining entries, and let other writers in. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._count:
                self._flush(self._count)
        finally:
            os.close(self._lock)

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error too: the entries that were added are good, and took time to compute.
        self.close()

    @abstractmethod
    def _resume(self) -> set[str]:
        """Check that this writer may add to the folder, call :meth:`_recover`, and return the names in the shards."""

    @abstractmethod
    def _write_shard(self, count: int) -> None:
        """Write the first ``count`` waiting entries as a shard, then the index, and forget the entries."""

    def _recover(self, listed: Collection[str]) -> bool:
        """Remove what a killed writer left: temporary files, and shards that the index does not list.

        Args:
            listed: the shards that the index lists; none if there is no index.

        Returns:
            Whether there is an index.

        Raises:
            InputError: there is no index, and the folder has other files than temporary ones.
        """
        shard = re.escape(self.stem) + r"-\d{5,}\.safetensors"
        temporary = re.compile(rf"\.({re.escape(INDEX)}|{shard})\.[0-9a-f]+\.tmp")
        present = {entry.name for entry in self.folder.iterdir()}
        stale = {name for name in present if temporary.fullmatch(name)}
        if INDEX not in present and present - stale:
            found = some(sorted(present - stale))
            raise InputError(f"{self.folder}: expected {self.kind} or an empty folder, got {found}")
        stale |= {name for name in present.difference(listed) if re.fullmatch(shard, name)}
        for name in stale:
            (self.folder / name).unlink()
        return INDEX in present

    def _check_new(self, names: Sequence[str]) -> None:
        if self._closed:
            raise ValueError("add: the writer is closed")
        twice = [name for name in names if name in self._done]
        if twice or len(set(names)) < len(names):
            raise ValueError(f"names: expected {self.expected}, each once; got {some(twice or names)}")

    def _added(self, names: Sequence[str]) -> None:
        self._done.update(names)
        self._count += len(names)
        while self._count >= self._per_shard:
            self._flush(self._per_shard)

    def _flush(self, count: int) -> None:
        self._write_shard(count)
        self._count -= count

    def _write(self, name: str, chunks: Sequence[bytes]) -> None:
        try:
            write_atomically(self.folder / name, chunks)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {reason(error)}") from error


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"


def _lock(folder: Path) -> int:
    """A descriptor of the folder that keeps other writers out until it is closed or the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: {reason(error)}") from error
    try:
        # Some network file systems cannot lock a folder. There the user must not start two writers.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{folder}: another process is writing to it") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
