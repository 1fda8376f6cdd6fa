"""The annotator of another commit in a process of its own, to time it in turn with this one's."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

PROGRAM = """
import sys
from pathlib import Path
import tagrank
from tagrank.annotator import Annotator

assert Path(tagrank.__file__).resolve().is_relative_to(Path(sys.argv[1]).resolve()), tagrank.__file__
annotator = Annotator.load(sys.argv[2])
annotator.backbone(sys.argv[3] or None)
paths = [Path(path) for path in sys.argv[4:]]
for _ in sys.stdin:
    for _ in annotator.annotate(paths):
        pass
    print("done", flush=True)
"""


class AnotherCommit:
    """``Annotator.annotate`` of a checkout, on the CPU.

    Args:
        checkout: the folder of the other commit's working tree, with what it needs built.
        model: the folder of a model that both can read.
        weights: of its backbone.
        paths: the photographs.
    """

    def __init__(self, checkout: Path, model: Path, weights: Path | None, paths: Sequence[Path]) -> None:
        given = [str(checkout), str(model), str(weights or ""), *map(str, paths)]
        command, pipe = [sys.executable, "-c", PROGRAM, *given], subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=checkout, stdin=pipe, stdout=pipe, text=True)

    def annotate(self) -> None:
        """Annotate all photographs, and wait for it."""
        assert self._process.stdin
        assert self._process.stdout
        print("go", file=self._process.stdin, flush=True)
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the annotator of the other commit failed")

    def __enter__(self) -> "AnotherCommit":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._process:  # closes its stdin, which ends it
            pass
