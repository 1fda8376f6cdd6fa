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
    # Python sets a stream that the shell closed (>&-) to None.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    # File names are bytes and need not be UTF-8: write out the bytes that were read in.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    app()


if __name__ == "__main__":
    main()
