"""What writers of shards have in common: a folder of shards and an index, added to by one process at a time."""

import contextlib
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

from tagrank.data.files import reason, write_atomically
from tagrank.errors import InputError

Writer = TypeVar("Writer", bound="ShardWriter")


class ShardWriter(ABC):
    """Collects what is added until it fills a shard, and goes on where an earlier writer stopped. A context manager.

    Args:
        folder: what is there already, an empty folder, or not there yet.
        per_shard: how many entries a shard has.

    Raises:
        InputError: another process is writing to the folder, or it cannot be made; and as :meth:`_resume`.
    """

    #: What the names that are added have to be.
    expected: ClassVar[str]

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
        """All names that were added, in this run or an earlier one."""
        return self._done

    def close(self) -> None:
        """Write what is left, and let other writers in. Closing once more does nothing."""
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
        # After an error too: what was added is good, and took time to compute.
        self.close()

    @abstractmethod
    def _resume(self) -> set[str]:
        """The names that are there, once the folder is known to be one to add to."""

    @abstractmethod
    def _write_shard(self, count: int) -> None:
        """Write the first so many of what was added as a shard, then the index, and forget them."""

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
    """The first few names, and how many there are beside them."""
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"


def _lock(folder: Path) -> int:
    """A descriptor of the folder that keeps other writers out until it is closed, or the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: {reason(error)}") from error
    try:
        # Some network file systems cannot lock a folder; two writers are then the user's to avoid.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{folder}: another process is writing to it") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
