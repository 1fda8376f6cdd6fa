"""``tagrank`` and ``python -m tagrank``."""

import io
import os
import sys


def main() -> None:
    """Run the command line, or name the package that it lacks."""
    try:
        _main()
    except KeyboardInterrupt:
        sys.exit(130)


def _main() -> None:
    try:
        from tagrank.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "tagrank":
            raise
        sys.exit(
            f"tagrank: the command line needs {error.name}, which is not installed: pip install 'tagrank[annotate]'"
        )
    # Python sets a stream to None if the shell closed it (>&-).
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    # File names are bytes, which need not be UTF-8. They must be written as the bytes that were read.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    app()


if __name__ == "__main__":
    main()
