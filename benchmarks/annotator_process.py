"""An annotator in a process of its own, to time it in turn with this process's."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PROGRAM = """
import sys
from pathlib import Path
import tagrank

assert Path(tagrank.__file__).resolve().is_relative_to(Path(sys.argv[1]).resolve()), tagrank.__file__
if sys.argv[2] == "keep":
    from tagrank.allocator import keep_memory
    keep_memory()
from tagrank.annotator import Annotator

annotator = Annotator.load(sys.argv[3])
annotator.backbone(sys.argv[4] or None)
paths = [Path(path) for path in sys.argv[5:]]
for line in sys.stdin:
    if line != "go\\n":
        break
    for _ in annotator.annotate(paths):
        pass
    print("done", flush=True)
"""


class AnnotatorProcess:
    """``Annotator.annotate`` of a checkout, on the CPU.

    Args:
        checkout: the folder of a working tree, with what it needs built; this one, or that of another commit.
        keep: whether it keeps the memory that it frees, as the command line does.
        model: the folder of a model that the checkout can read.
        weights: of its backbone.
        paths: the photographs.
    """

    def __init__(self, checkout: Path, keep: bool, model: Path, weights: Path | None, paths: Sequence[Path]) -> None:
        where = str(checkout.absolute())
        given = [where, "keep" if keep else "", str(model), str(weights or ""), *(str(p.absolute()) for p in paths)]
        command, pipe = [sys.executable, "-c", PROGRAM, *given], subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=where, stdin=pipe, stdout=pipe, text=True)

    def annotate(self) -> None:
        """Annotate all photographs, and wait for it."""
        assert self._process.stdin
        assert self._process.stdout
        print("go", file=self._process.stdin, flush=True)
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the annotator in another process failed")

    def __enter__(self) -> "AnnotatorProcess":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        # Closing its stdin is not enough: processes that were forked meanwhile have it open too.
        with self._process as process, suppress(BrokenPipeError):
            assert process.stdin
            print("end", file=process.stdin, flush=True)
