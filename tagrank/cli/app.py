"""What the commands share: the application, exit codes, and options by one name with one meaning.

Exit codes: 0, done; 1, some photographs could not be read; 2, bad input; 130, Ctrl-C.
"""

import csv
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import wraps
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagrank.data.files import reason
from tagrank.errors import InputError

if TYPE_CHECKING:
    from tagrank.annotator import Annotator

app = typer.Typer(
    name="tagrank",
    help="Rank the tags of a photograph: what a person would mention first comes first.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


class Decoder(str, Enum):
    """Names of :data:`tagrank.decode.DECODERS` and :data:`tagrank.decode.FEEDBACK_DECODERS`."""

    headline = "headline"
    expected_gain = "expected_gain"
    greedy = "greedy"
    assignment = "assignment"
    beam = "beam"


class Format(str, Enum):
    """Of what is written to stdout."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"


Model = Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)]
ManifestFile = Annotated[Path, typer.Argument(help="JSON lines: image, and tags or lists.", show_default=False)]
FeaturesOption = Annotated[
    Path | None, typer.Option("--features", help="Features of the images: a store or .npz; else they are computed.")
]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Folder of the images, where it is not the manifest's.")
]
SplitOption = Annotated[
    str | None, typer.Option(help="Judge by this split; else by 'test', or by all where the manifest has no splits.")
]
BaselinesOption = Annotated[bool, typer.Option("--baselines", help="Fit the baselines, and put them in the table.")]
TrainOption = Annotated[
    Path | None, typer.Option("--train", help="Manifest to fit the baselines on; else MANIFEST, less what is judged.")
]
TrainFeaturesOption = Annotated[
    Path | None, typer.Option("--train-features", help="Features of --train; else --features, where it has them.")
]
DecoderOption = Annotated[
    Decoder | None,
    typer.Option(help="How a list is chosen; else headline, or expected_gain for models with --feedback, as beam is."),
]
BeamsOption = Annotated[int, typer.Option(help="Lists that the decoder beam keeps at each position.", min=1)]
SamplesOption = Annotated[int, typer.Option(help="Lists drawn per photograph from a model with --feedback.", min=1)]
ThresholdOption = Annotated[
    float | None, typer.Option(help="Tags at least this likely to be on a person's list.", min=0, max=1)
]
ThresholdsOption = Annotated[Path | None, typer.Option(help='JSON file with thresholds for some tags: {"dog": 0.5}.')]
IncludeOption = Annotated[
    str | None, typer.Option(help='The only tags to show, separated by commas; one with a comma in quotes: "a, b".')
]
ExcludeOption = Annotated[str | None, typer.Option(help="Tags not to show, as for --include.")]
SynonymsOption = Annotated[
    Path | None, typer.Option(help='JSON file of tags to show under one name: {"person": ["man", "woman"]}.')
]
FormatOption = Annotated[Format, typer.Option(help="Of the output.")]
BackboneOption = Annotated[
    str | None,
    typer.Option(help="vgg16, any classifier of torchvision, efficientnet_lite0, or small_cnn (trained with it)."),
]
WeightsOption = Annotated[
    str | None, typer.Option(help="Of the backbone: a .pth or .safetensors file, or a name of torchvision's.")
]
SeedOption = Annotated[int, typer.Option(help="Decides all that is drawn at random.", min=0, max=2**32 - 1)]


def split_tags(option: str, text: str | None) -> list[str]:
    """Tags from an option where they are separated by commas, as a row of CSV: in quotes a tag may have commas itself.

    Raises:
        InputError: a quote is not closed, or something follows a tag in quotes.
    """
    try:
        rows = list(csv.reader([text or ""], skipinitialspace=True, strict=True))
    except csv.Error as error:
        expected = 'tags separated by commas, one with a comma in quotes ("a, b")'
        raise InputError(f"{option}: expected {expected}, got {text!r:.60} ({error})") from error
    return [tag.strip() for row in rows for tag in row if tag.strip()]


def list_options(
    annotator: "Annotator",
    decoder: Decoder | None,
    beams: int,
    samples: int,
    threshold: float | None,
    thresholds: Path | None,
    include: str | None,
    exclude: str | None,
    synonyms: Path | None,
) -> dict[str, Any]:
    """The options of :meth:`tagrank.annotator.Annotator.rank` that several commands have."""
    from tagrank.decode import OutputTags, read_synonyms, read_thresholds

    annotator.check_decoder(decoder and decoder.value)
    output = OutputTags(
        annotator.vocabulary,
        include=split_tags("--include", include),
        exclude=split_tags("--exclude", exclude),
        thresholds=None if thresholds is None else read_thresholds(thresholds),
        synonyms=None if synonyms is None else read_synonyms(synonyms),
    )
    return {
        "decoder": decoder and decoder.value,
        "beams": beams,
        "samples": samples,
        "threshold": threshold,
        "output": output,
    }


def check_target(option: str, path: Path, *, make_folder: bool = False) -> None:
    """Make sure, before the work, that a file can be written there after it.

    Args:
        option: where the path was given, for the message.
        path: the file; one that is there is not touched.
        make_folder: whether its folder will be made where it is not there.

    Raises:
        InputError: there is something else than a file, or no file can be made in the folder.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{option}: {path}: expected a file, or nothing yet; there is something else")
        folders = (folder for folder in path.absolute().parents if folder.exists() or not make_folder)
        with NamedTemporaryFile(dir=next(folders), prefix=f".{path.name}.", suffix=".tmp"):
            pass
    except OSError as error:
        raise InputError(f"{option}: {path}: cannot be written: {reason(error)}") from error


@contextmanager
def _exit_codes() -> Iterator[None]:
    # Pillow warns of pictures that are merely large; those that are too large are errors.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=Warning)
    try:
        yield
    except InputError as error:
        typer.echo(f"tagrank: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("tagrank: interrupted", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:
        typer.echo(f"tagrank: {f'{error.filename}: {reason(error)}' if error.filename else error}", err=True)
        raise typer.Exit(2) from error


def command(example: str, group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with an example in its help, whose errors become exit codes."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            with _exit_codes():
                function(*args, **kwargs)

        group.command(epilog=f"Example: `{example}`")(run)
        return run

    return register
