"""A writer of features that is killed, for test_store.py. Run as ``python crash.py each|slow FOLDER``.

``each`` makes a writer kill itself (SIGKILL) before and after each of its operations on files, and resumes each time.
It prints how many writers were killed. ``slow`` writes one row after another until it is killed from outside.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from tagrank.features.store import FeatureWriter, open_features

DIMENSION = 3
ROWS = 3
SPEC = {"backbone": "test", "weights": "none", "preprocessing": "none"}


def vector(row: int) -> torch.Tensor:
    """The vector of image ``str(row)``; exact in float16."""
    return torch.tensor([[row, row + 0.5, -row]])


def write(folder: Path, rows: Iterable[int], rows_per_shard: int, pause: float = 0.0) -> None:
    with FeatureWriter(folder, SPEC, DIMENSION, rows_per_shard) as writer:
        for row in rows:
            if str(row) not in writer.done:
                writer.add([str(row)], vector(row))
                time.sleep(pause)


def die_at(operation: int) -> None:
    """Make the process kill itself: 0 before its first operation on files, 1 after it, 2 before the second, ..."""
    counter = count()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(counter) == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if next(counter) == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    os.open, os.fsync, os.replace, os.unlink = map(wrap, (os.open, os.fsync, os.replace, os.unlink))
    Path.mkdir, Path.open, Path.unlink = map(wrap, (Path.mkdir, Path.open, Path.unlink))  # type: ignore[method-assign]


def killed(folder: Path, operation: int) -> bool:
    """Run a writer in a process of its own. Returns whether it was killed before it finished."""
    child = os.fork()
    if child == 0:
        die_at(operation)
        write(folder, range(ROWS), rows_per_shard=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def each(folder: Path) -> None:
    for operation in count():
        here = folder / str(operation)
        if not killed(here, operation):
            break
        # A second writer is killed too, while it resumes: it may die while it deletes what the first writer left.
        killed(here, operation // 2)
        before = set(open_features(here).names) if (here / "index.json").exists() else set()
        write(here, range(ROWS), rows_per_shard=2)
        features = open_features(here)
        assert sorted(features.names) == ["0", "1", "2"], (operation, features.names)
        assert before <= set(features.names)
        assert torch.equal(features.rows(["2", "0", "1"]), torch.cat([vector(row) for row in (2, 0, 1)]))
        left = {entry.name for entry in here.iterdir()}
        assert left == {"index.json", *(f"features-{n:05d}.safetensors" for n in range(len(left) - 1))}, left
    print(operation)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "each":
        each(Path(sys.argv[2]))
    else:
        write(Path(sys.argv[2]), range(2000), rows_per_shard=7, pause=0.002)
