"""``export``: a trained model as one file."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from tagrank.cli.app import Model, WeightsOption, check_target, command, find_model
from tagrank.errors import InputError

Format = Literal["onnx", "pt2"]


@command("tagrank export models/photos --out photos.onnx")
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file: NAME.onnx or NAME.pt2.", show_default=False)],
    format: Annotated[
        Format | None,
        typer.Option(help="ONNX, or a program of torch.export. Default: as the name of the file ends."),
    ] = None,
    input: Annotated[
        Literal["photographs", "features"] | None,
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
    model = find_model(model)
    endings = {f".{known}": known for known in get_args(Format) if format in (None, known)}
    if out.suffix not in endings:
        raise InputError(f"--out: expected a name that ends in {' or '.join(endings)}, got {out}")
    check_target("--out", out)
    from tagrank.annotator import Annotator
    from tagrank.exporting import export_model

    line = export_model(Annotator.load(model), out, format=endings[out.suffix], input=input, weights=weights)
    typer.echo(line)
