"""``search``: find photographs by the tags that people would give them."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagrank.cli.app import (
    Format,
    FormatOption,
    WeightsOption,
    check_inputs,
    command,
    find_model,
)
from tagrank.cli.terminal import shown
from tagrank.data.spellings import file_key
from tagrank.errors import InputError
from tagrank.options import split_tags

if TYPE_CHECKING:
    from tagrank.retrieval import Match, PhotoIndex
    from tagrank.retrieval.photo_shard import HalfArray

BATCH = 256


@command('tagrank search indexes/holiday "dog, ball, grass" --top-k 10')
def search(
    index: Annotated[Path, typer.Argument(help="What tagrank index made.", show_default=False)],
    query: Annotated[
        str | None,
        typer.Argument(
            help="Tags separated by commas, most important first; a tag with a comma in quotes.", show_default=False
        ),
    ] = None,
    unordered: Annotated[
        bool, typer.Option("--unordered", help="The tags may come in any order; at most 10 tags.")
    ] = False,
    like: Annotated[
        str | None,
        typer.Option(help="Instead of a query: a photograph of the index by name, or with --model any image file."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="The index's model, for --like with an image file.")] = None,
    top_k: Annotated[int, typer.Option(help="How many photographs to show.", min=1)] = 20,
    root: Annotated[
        Path | None,
        typer.Option(help="The folder that the names in the index begin in now, if the photographs were moved."),
    ] = None,
    format: FormatOption = Format.text,
    weights: WeightsOption = None,
) -> None:
    """Find the photographs whose lists most likely start with the tags of a query.

    The score is this probability. With --like it says how alike the lists of two photographs are, from 0 to 1.
    """
    if (query is None) == (like is None):
        raise InputError("expected either a query or --like")
    if query is not None and model is not None:
        raise InputError("--model goes with --like")
    if model is None and weights is not None:
        raise InputError("--weights goes with --like and --model")
    if like is not None and unordered:
        raise InputError("--unordered goes with a query of tags")
    if model is not None:
        model = find_model(model)
    from tagrank.retrieval import open_index

    check_inputs(root)
    photos = open_index(index, root)
    if query is not None:
        found = photos.search(split_tags("query", query), ordered=not unordered, top_k=top_k)
        _write([match._replace(image=_shown_path(photos, match.image, root)) for match in found], format)
        return
    assert like is not None
    like = _spelling(photos, like) if model is None else like
    gains = photos.gains(like) if model is None else _gains(photos, model, Path(like), weights)
    # A photograph of the index is most similar to itself, and is left out.
    found = photos.similar(gains, top_k + 1 if model is None else top_k)
    others = [match for match in found if model is not None or match.image != like][:top_k]
    _write(
        [
            match._replace(rank=rank, image=_shown_path(photos, match.image, root))
            for rank, match in enumerate(others, 1)
        ],
        format,
    )


def _spelling(photos: "PhotoIndex", image: str) -> str:
    """The name that a photograph has in the index, if it is there under any path to the same file."""
    if image in photos:
        return image
    keys = {file_key(image), file_key(os.path.realpath(image))}
    return next((name for name in photos.names() if file_key(photos.path(name)) in keys), image)


def _shown_path(photos: "PhotoIndex", name: str, root: Path | None) -> str:
    """A path that leads to a photograph from the current folder: its name, if names begin here."""
    here = root is None and (photos.root is None or photos.root == Path.cwd())
    return name if here else str(photos.path(name))


def _gains(photos: "PhotoIndex", model: Path, image: Path, weights: str | None) -> "HalfArray":
    from tagrank.annotator import Annotator
    from tagrank.features.extraction import all_readable, extract_features

    annotator = Annotator.load(model)
    ((_, row),) = all_readable(extract_features(annotator.backbone(weights), [image]))
    return photos.gains_of(annotator, row)


def _write(matches: "Sequence[Match]", format: Format) -> None:
    """Write scores with six significant digits; further digits depend on the machine."""
    records = [match._asdict() | {"score": float(f"{match.score:.6g}")} for match in matches]
    if format is Format.csv:
        rows = csv.writer(sys.stdout, lineterminator="\n")
        rows.writerow(["image", "rank", "score"])
        rows.writerows(record.values() for record in records)
    for record in records:
        if format is Format.jsonl:
            print(json.dumps(record))
        elif format is Format.text:
            print(shown(f"{record['rank']}. {record['image']} ({record['score']:.3g})"))
    sys.stdout.flush()
