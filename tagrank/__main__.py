"""``tagrank`` and ``python -m tagrank``."""

import sys


def main() -> None:
    """Run the command line, or say what it lacks."""
    try:
        from tagrank.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "tagrank":
            raise
        sys.exit(
            f"tagrank: the command line needs {error.name}, which is not installed: pip install 'tagrank[annotate]'"
        )
    app()


if __name__ == "__main__":
    main()
