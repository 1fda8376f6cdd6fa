"""``index`` and ``search``: find photographs by the tags that people would give them."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagrank.cli.app import (
    DeviceOption,
    ExcludeOption,
    Format,
    FormatOption,
    ImagesOption,
    Model,
    NullOption,
    WeightsOption,
    check_inputs,
    chosen_device,
    command,
    find_model,
)
from tagrank.cli.photographs import expand_stdin
from tagrank.cli.terminal import Complaints, shown
from tagrank.data.spellings import file_key
from tagrank.errors import InputError
from tagrank.options import split_tags

if TYPE_CHECKING:
    from torch import Tensor

    from tagrank.annotator import Annotator
    from tagrank.features.store import Features
    from tagrank.retrieval import IndexWriter, Match, PhotoIndex
    from tagrank.retrieval.index import HalfArray, Stamp

BATCH = 256


@command("tagrank index models/photos holiday/ --out indexes/holiday")
def index(
    model: Model,
    out: Annotated[Path, typer.Option(help="The index; an existing one is added to.", show_default=False)],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders of them, manifests, or - for paths on stdin.", show_default=False),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="A store or .npz instead of PATHS: all images in it, by their names there.")
    ] = None,
    images: ImagesOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    exclude_folder: ExcludeOption = None,
    null: NullOption = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update/--no-update",
            help="Whether photographs that are gone from PATHS leave the index, and changed ones are computed again.",
        ),
    ] = True,
) -> None:
    """Keep a model's predictions for photographs, to search them.

    Photographs that the index has already are not computed again, unless their file has another size or time. What
    cannot be read is reported on stderr; the others are added, and the exit code is 1.
    """
    if (not paths) == (features is None):
        raise InputError("expected photographs, or --features instead; not both")
    model = find_model(model)
    given = expand_stdin(paths or (), null)
    check_inputs(features, images, *(Path(path) for path in given if path.endswith(".jsonl")))
    unread, failed = Complaints(), Complaints()
    photographs = _photographs(given, images, exclude_folder or (), unread) if features is None else []
    from tagrank.annotator import Annotator
    from tagrank.progress import track
    from tagrank.retrieval import IndexWriter
    from tagrank.retrieval.index import UNKNOWN

    annotator = Annotator.load(model, chosen_device(device))
    added = 0
    with IndexWriter(out, annotator) as writer:
        before = len(writer.done)
        table = None if features is None else _stored(features, annotator)
        names = photographs if table is None else table.names
        by_key = {file_key(name): name for name in reversed(names)}
        left = _left(writer, by_key, given) if update and table is None else []
        writer.remove(left)
        there = by_key.keys() & set(map(file_key, writer.done))
        new = [name for key, name in reversed(by_key.items()) if key not in there]
        stamps = {name: _stamp(name) for name in new} if table is None else {}
        rows = _computed_features(annotator, new, weights, failed) if table is None else _stored_features(table, new)
        for batch in track(_batches(rows), "indexing", total=-(-len(new) // BATCH)):
            some = [name for name, _ in batch]
            known = None if table is not None else [stamps[name] or UNKNOWN for name in some]
            writer.add(some, annotator.probabilities(_stack(batch)), known)
            added += len(batch)
    typer.echo(
        f"{out}: {added} photographs added, {len(there)} were there, {unread.count + failed.count} failed; "
        f"{before - len(left) + added} in all" + (f"; {len(left)} left, gone or changed" if left else "")
    )
    unread.exit()
    failed.exit()


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
    if like is not None and unordered:
        raise InputError("--unordered goes with a query of tags")
    if model is not None:
        model = find_model(model)
    from tagrank.retrieval import open_index

    photos = open_index(index)
    if query is not None:
        _write(photos.search(split_tags("query", query), ordered=not unordered, top_k=top_k), format)
        return
    assert like is not None
    like = _spelling(photos, like) if model is None else like
    gains = photos.gains(like) if model is None else _gains(photos, model, Path(like), weights)
    # A photograph of the index is most similar to itself, and is left out.
    found = photos.similar(gains, top_k + 1 if model is None else top_k)
    others = [match for match in found if model is not None or match.image != like][:top_k]
    _write([match._replace(rank=rank) for rank, match in enumerate(others, 1)], format)


def _photographs(
    paths: Sequence[str], root: Path | None, exclude_folders: Sequence[str], on_error: Complaints
) -> list[str]:
    """The paths of all image files in these folders and manifests."""
    from tagrank.data.manifest import read_manifest
    from tagrank.data.spellings import find_file
    from tagrank.features.folders import find_images
    from tagrank.features.picture_folder import check_some_there

    images: list[Path] = []
    for path in map(Path, paths):
        if path.suffix != ".jsonl":
            images.append(path)
            continue
        manifest = read_manifest(path)
        folder = root or manifest.root
        check_some_there(manifest, folder)
        images.extend(find_file(folder, example.image) for example in manifest.examples)
    return list(map(str, find_images(images, exclude_folders=exclude_folders, on_error=on_error)))


def _left(writer: "IndexWriter", by_key: Mapping[str, str], paths: Sequence[str]) -> list[str]:
    """The photographs of an index that changed, and those that are gone from folders among the paths."""
    from tagrank.features.folders import is_folder
    from tagrank.retrieval.index import UNKNOWN

    folders = tuple(f"{file_key(path)}/".replace("//", "/") for path in paths if is_folder(Path(path)))
    left = []
    for name in writer.done:
        key = file_key(name)
        if key in by_key or key.startswith(folders):
            stamp, now = writer.stamp(name), _stamp(name)
            if now is None or (UNKNOWN not in (stamp, now) and now != stamp):
                left.append(name)
    return left


def _stamp(name: str) -> "Stamp | None":
    """The stamp of a photograph's file. None if there is no such file, and unknown if that cannot be found out."""
    from tagrank.retrieval.index import UNKNOWN, Stamp

    try:
        return Stamp.of(name)
    except (OSError, ValueError):
        return UNKNOWN


def _spelling(photos: "PhotoIndex", image: str) -> str:
    """The name that a photograph has in the index, if it is there under any path to the same file."""
    if image in photos:
        return image
    keys = {file_key(image), file_key(os.path.realpath(image))}
    return next((name for name in photos.names() if file_key(name) in keys), image)


def _stored(features: Path, annotator: "Annotator") -> "Features":
    """A feature store, after a check that its features fit the model."""
    from tagrank.features.labelled import LabelledImages
    from tagrank.features.store import open_features

    table = open_features(features)
    LabelledImages([], table.rows([]), table.spec).check(annotator.ranker.feature_size, annotator.backbone_spec)
    return table


def _stored_features(table: "Features", names: Sequence[str]) -> "Iterator[tuple[str, Tensor]]":
    for start in range(0, len(names), BATCH):
        some = names[start : start + BATCH]
        yield from zip(some, table.rows(some), strict=True)


def _computed_features(
    annotator: "Annotator", names: Sequence[str], weights: str | None, on_error: Complaints
) -> "Iterator[tuple[str, Tensor]]":
    """Photographs with their features. A photograph that cannot be read is reported and left out."""
    from tagrank.features.extraction import extract_features

    for path, row in extract_features(annotator.backbone(weights), [Path(name) for name in names]):
        if isinstance(row, InputError):
            on_error(row)
        else:
            yield str(path), row


def _batches(rows: "Iterable[tuple[str, Tensor]]") -> "Iterator[list[tuple[str, Tensor]]]":
    waiting = iter(rows)
    while batch := list(islice(waiting, BATCH)):
        yield batch


def _stack(batch: "Sequence[tuple[str, Tensor]]") -> "Tensor":
    import torch

    return torch.stack([row for _, row in batch])


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
