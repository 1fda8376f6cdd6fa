"""The command line: options in, results on stdout, progress and errors on stderr."""

# The help lists the commands in the order of these imports.
from tagrank.cli import training, judging, annotating, searching, publishing, preparing  # noqa: F401, I001
from tagrank.cli.app import app

__all__ = ["app"]

app.add_typer(preparing.app, name="prepare")
