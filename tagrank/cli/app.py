"""What the commands share: the application, exit codes, and options that mean the same in each command.

Exit codes: 0, done; 1, some photographs could not be read; 2, bad input; 130, Ctrl-C.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from enum import Enum
from functools import wraps
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import typer

from tagrank import __version__
from tagrank.cli.expansion import expand
from tagrank.cli.terminal import complain
from tagrank.data.files import reason
from tagrank.errors import InputError, InputWarning
from tagrank.model_files import check_model
from tagrank.options import DEVICE, IMAGES, MAX_SEED, SEED, WEIGHTS

app = typer.Typer(
    name="tagrank",
    help="Rank the tags of a photograph: what a person would mention first comes first.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tagrank {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


class Format(str, Enum):
    """The format of the output on stdout."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"


Model = Annotated[
    Path,
    typer.Argument(help="Folder of a trained model, or hf:ORG/NAME[@REVISION] of a model hub.", show_default=False),
]
ManifestFile = Annotated[
    Path, typer.Argument(help="JSON lines, one for each image, with its tags or lists.", show_default=False)
]
FormatOption = Annotated[Format, typer.Option(help="Format of the output.")]
ImagesOption = Annotated[Path | None, typer.Option(help=IMAGES)]
WeightsOption = Annotated[str | None, typer.Option(help=WEIGHTS)]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="Compile the backbone first, by torch.compile: for hundreds of photographs."),
]
DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE)]
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


def check_inputs(*given: object) -> None:
    """Check that files and folders exist, before a command imports what takes seconds to import.

    Args:
        *given: paths, and dataclasses of options; what is not a path is ignored.

    Raises:
        InputError: a path does not exist.
    """
    for value in given:
        for path in vars(value).values() if is_dataclass(value) else (value,):
            if isinstance(path, Path) and not path.exists():
                raise InputError(f"{path}: no such file or directory")


def find_model(model: Path, check: Callable[[Path], None] = check_model) -> Path:
    """The folder of a model, with all its files. A model of a hub is downloaded, and a line on stderr names its commit.

    Args:
        model: a folder, or ``hf:ORG/NAME[@REVISION]``.
        check: raises an error if this is none.

    Raises:
        InputError: it is no folder of a model, or cannot be downloaded.
    """
    from tagrank.model_hub import download, is_on_hub

    if is_on_hub(str(model)):
        source = download(str(model))
        complain(source.name)
        model = source.folder
    check(model)
    return model


def chosen_device(name: str) -> str:
    """The device that an option names. If ``auto`` takes a GPU, a line on stderr says so.

    Raises:
        InputError: there is no such device.
    """
    from tagrank.features.devices import find_device, in_words

    device = find_device(name)
    if name == "auto" and device.type != "cpu":
        complain(f"computing on {in_words(device)}")
    return str(device)


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
def _warnings_in_a_line() -> Iterator[None]:
    """Print warnings about what was given as errors are printed: without a place in the code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def complain_or_show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, InputWarning):
                complain(message)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = complain_or_show
        yield


@contextmanager
def _exit_codes() -> Iterator[None]:
    # Ignore Pillow's warnings about large pictures: a picture that is too large raises an error.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=Warning)
    try:
        with _warnings_in_a_line():
            yield
    except InputError as error:
        complain(error)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
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
