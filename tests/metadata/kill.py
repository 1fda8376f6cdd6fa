"""Writers of tags that are killed, for test_tag_writer.py. Run as ``python kill.py PHOTOGRAPH PLACE FOLDER``.

A writer kills itself before and after each of its operations on files. What it leaves must be whole: the file as it
was, or as a writer that was not killed leaves it. Prints how many writers were killed.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from tagrank.metadata import Place, TagWriter
from tagrank.metadata.keyword_lists import Ranked

TAGS = Ranked(("dog", "ball"), (0.9, 0.5))


def die_at(operation: int) -> None:
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

    os.open, os.fsync, os.replace, os.utime, os.chown = map(wrap, (os.open, os.fsync, os.replace, os.utime, os.chown))
    Path.open, Path.unlink = wrap(Path.open), wrap(Path.unlink)  # type: ignore[method-assign]


def killed(photograph: Path, place: Place, operation: int) -> bool:
    child = os.fork()
    if child == 0:
        die_at(operation)
        TagWriter(place).write(photograph, TAGS)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def content(photograph: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in photograph.parent.iterdir() if not path.name.endswith(".tmp")}


def main(given: Path, place: Place, folder: Path) -> None:
    for operation in count():
        photograph = folder / str(operation) / given.name
        photograph.parent.mkdir(parents=True)
        shutil.copy2(given, photograph)
        before = content(photograph)
        was_killed = killed(photograph, place, operation)
        left = content(photograph)
        TagWriter(place).write(photograph, TAGS)
        after = content(photograph)
        assert before != after
        assert left in (before, after), (operation, left.keys())
        assert os.stat(photograph).st_mtime_ns == os.stat(given).st_mtime_ns
        if not was_killed:
            assert left == after
            break
    print(operation)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Place(sys.argv[2]), Path(sys.argv[3]))
