"""``tagrank`` and ``python -m tagrank``."""

import atexit
import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator


class Output(io.TextIOWrapper):
    """stdout. If its reader has stopped reading, as ``head`` does, nothing is left to do: the process ends, with 0.

    An error instead would be handled by the libraries that print, which end with 1.
    """

    def write(self, text: str) -> int:
        with self._while_read():
            return super().write(text)

    def flush(self) -> None:
        with self._while_read():
            super().flush()

    @contextlib.contextmanager
    def _while_read(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What is still in the buffer goes there; Python would complain otherwise when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            sys.exit(0)


def main() -> None:
    """Run the command line, or name the package that it lacks."""
    try:
        try:
            _main()
        finally:
            # What could not be written must be an error here: later, Python would only say that it ignored it.
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # Without this, Python would try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"tagrank: the output cannot be written: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        sys.exit(2)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of file names as they were read (``surrogateescape``), all else that has no encoding as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("tagrank", _escape)


def _main() -> None:
    try:
        from tagrank.allocator import keep_memory
        from tagrank.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "tagrank":
            raise
        sys.exit(
            f"tagrank: the command line needs {error.name}, which is not installed: pip install 'tagrank[annotate]'"
        )
    keep_memory()
    # Python sets a stream to None if the shell closed it (>&-).
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    # File names are bytes, which need not be UTF-8. They must be written as the bytes that were read.
    for stream in (sys.stdin, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="tagrank")
    if isinstance(out := sys.stdout, io.TextIOWrapper):
        lines, unbuffered = out.line_buffering, out.write_through
        sys.stdout = Output(out.detach(), out.encoding, "tagrank", line_buffering=lines, write_through=unbuffered)
    app()


def _main_of_module() -> None:
    """:func:`main` for ``python -m tagrank``, which exits with 130 after every Ctrl-C, as ``tagrank`` does.

    If Ctrl-C comes while Python runs code from a string, as it does while a dataclass is imported, ``python -m`` would
    end by the signal instead, although the exception was handled.
    """
    try:
        main()
    except SystemExit as end:
        if end.code == 130:
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
            os._exit(130)
        raise


if __name__ == "__main__":
    _main_of_module()
