"""The command line: options in, results on stdout, progress and errors on stderr."""

# The help lists the commands in the order of these imports.
from tagrank.cli import (  # noqa: F401, I001
    training,
    judging,
    annotating,
    writing,
    indexing,
    searching,
    exporting,
    serving,
    publishing,
    preparing,
)
from tagrank.cli.app import app

__all__ = ["app"]

app.add_typer(preparing.app, name="prepare")
