"""What the commands share: the application, exit codes, and options that mean the same in each command.

Exit codes: 0, done; 1, some photographs could not be read; 2, bad input; 130, Ctrl-C.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import wraps
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import typer

from tagrank.cli.expansion import expand
from tagrank.cli.terminal import complain
from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.options import MAX_SEED, SEED, WEIGHTS

app = typer.Typer(
    name="tagrank",
    help="Rank the tags of a photograph: what a person would mention first comes first.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


class Format(str, Enum):
    """The format of the output on stdout."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"


Model = Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)]
ManifestFile = Annotated[
    Path, typer.Argument(help="JSON lines, one for each image, with its tags or lists.", show_default=False)
]
FormatOption = Annotated[Format, typer.Option(help="Format of the output.")]
WeightsOption = Annotated[str | None, typer.Option(help=WEIGHTS)]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-folder",
        help="Leave out folders below PATHS, by name (* stands for any text) or path. May be given more than once.",
    ),
]
NullOption = Annotated[
    bool, typer.Option("-0", "--null", help="The paths on stdin end with NUL, as find -print0 writes them.")
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable/--no-skip-unreadable",
        help="If an image cannot be read or has no features: leave it out and exit with 1, or stop.",
    ),
]
SeedOption = Annotated[int, typer.Option(help=SEED, min=0, max=MAX_SEED)]


def check_target(option: str, path: Path, *, make_folder: bool = False) -> None:
    """Check, before a command starts its work, that the result can be written to a file.

    Args:
        option: the option that gave the path, for the error message.
        path: the file. If it exists, it is not touched.
        make_folder: whether the command will make the folder if it does not exist.

    Raises:
        InputError: the path exists and is not a file, or no file can be made in the folder.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{option}: {path}: expected a file or an unused path, but this is not a file")
        folders = (folder for folder in path.absolute().parents if folder.exists() or not make_folder)
        with NamedTemporaryFile(dir=next(folders), prefix=f".{path.name}.", suffix=".tmp"):
            pass
    except OSError as error:
        raise InputError(f"{option}: {path}: cannot be written: {reason(error)}") from error


@contextmanager
def _exit_codes() -> Iterator[None]:
    # Ignore Pillow's warnings about large pictures: a picture that is too large raises an error.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=Warning)
    try:
        yield
    except InputError as error:
        complain(error)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of our output has stopped reading. Without this, Python would raise again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:
        complain(f"{error.filename or 'the output cannot be written'}: {reason(error)}")
        raise typer.Exit(2) from error


def command(example: str, group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command.

    Its errors become exit codes, its parameters that are dataclasses become options (:func:`expand`), and its help ends
    with the example.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        expanded = expand(function)

        @wraps(expanded)
        def run(**kwargs: Any) -> None:
            with _exit_codes():
                expanded(**kwargs)

        group.command(epilog=f"Example: `{example}`")(run)
        return run

    return register
