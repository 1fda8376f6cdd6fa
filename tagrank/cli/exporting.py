"""``export``: a trained model as one file."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tagrank.cli.app import Model, WeightsOption, check_target, command
from tagrank.errors import InputError
from tagrank.model_files import check_model


class FileFormat(str, Enum):
    """The format of the file."""

    onnx = "onnx"
    pt2 = "pt2"


class FileInput(str, Enum):
    """What the program in the file takes."""

    photographs = "photographs"
    features = "features"


@command("tagrank export models/photos --out photos.onnx")
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file: NAME.onnx or NAME.pt2.", show_default=False)],
    format: Annotated[
        FileFormat | None,
        typer.Option(help="ONNX, or a program of torch.export. Default: as the name of the file ends."),
    ] = None,
    input: Annotated[
        FileInput | None,
        typer.Option(
            help="Whether the file holds the backbone and takes photographs, or takes features. "
            "Default: photographs, if the backbone is known."
        ),
    ] = None,
    weights: WeightsOption = None,
) -> None:
    """Write a model as one file, which runs without tagrank: distributions of tags for photographs.

    The vocabulary, the calibration and the preprocessing are in the file's metadata, so tagrank annotate NAME.onnx
    gives the tags and scores that the model's folder gives. A model with --feedback cannot be exported.
    """
    check_model(model)
    ending = out.suffix.removeprefix(".")
    known = [choice.value for choice in FileFormat]
    if ending not in known or (format is not None and ending != format.value):
        expected = f".{format.value}" if format is not None else " or ".join(f".{choice}" for choice in known)
        raise InputError(f"--out: expected a name that ends in {expected}, got {out}")
    check_target("--out", out)
    from tagrank.annotator import Annotator
    from tagrank.exporting import export_model

    annotator = Annotator.load(model)
    chosen = None if input is None else input.value
    typer.echo(export_model(annotator, out, format=FileFormat(ending).value, input=chosen, weights=weights))
