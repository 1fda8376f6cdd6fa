"""``index``: keep a model's predictions for photographs, and bring them up to date."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tagrank.cli.app import (
    CompileOption,
    DeviceOption,
    ExcludeOption,
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
from tagrank.cli.terminal import Complaints
from tagrank.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from tagrank.annotator import Annotator
    from tagrank.features.store import Features
    from tagrank.retrieval.photo_shard import Stamp

    Row = tuple[str, Tensor, Future[Stamp]]

T = TypeVar("T")

BATCH = 256


@command("tagrank index models/photos holiday/ --out indexes/holiday")
def index(
    model: Model,
    out: Annotated[Path, typer.Option(help="The index; an existing one is brought up to date.", show_default=False)],
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
    compile: CompileOption = False,
    exclude_folder: ExcludeOption = None,
    null: NullOption = False,
    root: Annotated[
        Path | None,
        typer.Option(
            help="The folder that names in the index begin in, also if photographs were moved there. "
            "Default: what the index says; for a new one the current folder."
        ),
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update/--no-update",
            help="Whether photographs that are gone from PATHS leave the index, and changed ones are computed again.",
        ),
    ] = True,
) -> None:
    """Keep a model's predictions for photographs, to search them.

    Photographs that the index has already are not computed again, unless their file changed: its size, or its time
    and its content. The index is replaced at once when all is computed; an interrupted update goes on where it stopped.
    What cannot be read is reported on stderr; the others are added, and the exit code is 1.
    """
    if (not paths) == (features is None):
        raise InputError("expected photographs, or --features instead; not both")
    if features is not None and root is not None:
        raise InputError("--root goes with photographs, not with --features")
    if features is not None and weights is not None:
        raise InputError("--weights goes with photographs, not with --features")
    if features is not None and compile:
        raise InputError("--compile goes with photographs, not with --features")
    model = find_model(model)
    given = expand_stdin(paths or (), null)
    from tagrank.data.shards import INDEX
    from tagrank.retrieval.index_file import read_contents

    if features is not None and (out / INDEX).is_file() and read_contents(out).root is not None:
        raise InputError(f"{out}: is an index of photographs: expected another folder for an index of --features")
    check_inputs(features, images, root, *(Path(path) for path in given if path.endswith(".jsonl")))
    unread, failed = Complaints(), Complaints()
    photographs = _photographs(given, images, exclude_folder or (), unread) if features is None else []
    folder = _root(out, root) if features is None else None
    from tagrank.annotator import Annotator
    from tagrank.features.folders import is_folder
    from tagrank.progress import track
    from tagrank.retrieval.photo_changes import keep_what_is_known
    from tagrank.retrieval.update import IndexUpdate

    annotator = Annotator.load(model, chosen_device(device))
    table = None if features is None else _stored(features, annotator)
    added = 0
    with IndexUpdate(out, annotator, root=folder) as index:
        names = photographs if table is None else table.names
        folders = [path for path in given if is_folder(Path(path))]
        changes = keep_what_is_known(index, names, folders, refresh=update and table is None)
        rows = (
            _computed_features(annotator, changes.new, weights, compile, failed)
            if table is None
            else _stored_features(table, changes.new)
        )
        for batch in track(_batches(rows), "indexing", total=-(-len(changes.new) // BATCH)):
            features_of = _stack([row for _, row, _ in batch])
            stamps = [stamp.result() for _, _, stamp in batch]
            index.add([name for name, _, _ in batch], annotator.probabilities(features_of), stamps)
            added += len(batch)
        total = index.commit()
    typer.echo(
        f"{out}: {added + changes.known} photographs added, {changes.there} were there, "
        f"{unread.count + failed.count} failed; {total} in all"
        + (f"; {changes.left} left, gone or changed" if changes.left else "")
        + (f"; {changes.known} were computed before" if changes.known else "")
    )
    unread.exit()
    failed.exit()


def _root(out: Path, given: Path | None) -> str | None:
    """The folder that names begin in: the one that is given now, the index's, or for a new index the current one."""
    from tagrank.data.shards import INDEX
    from tagrank.retrieval.index_file import read_contents

    if given is not None:
        return os.path.abspath(given)
    return read_contents(out).root if (out / INDEX).exists() else os.getcwd()


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


def _stored(features: Path, annotator: "Annotator") -> "Features":
    """A feature store, after a check that its features fit the model."""
    from tagrank.features.labelled import LabelledImages
    from tagrank.features.store import open_features

    table = open_features(features)
    LabelledImages([], table.rows([]), table.spec).check(annotator.ranker.feature_size, annotator.backbone_spec)
    return table


def _stored_features(table: "Features", names: Iterable[str]) -> "Iterator[Row]":
    from tagrank.retrieval.photo_shard import UNKNOWN

    stamp: Future[Stamp] = Future()
    stamp.set_result(UNKNOWN)
    for some in _batches(names):
        yield from ((name, row, stamp) for name, row in zip(some, table.rows(some), strict=True))


def _computed_features(
    annotator: "Annotator",
    new: "Mapping[str, tuple[str, Stamp]]",
    weights: str | None,
    compile: bool,
    on_error: Complaints,
) -> "Iterator[Row]":
    """Photographs with their features and stamps. A photograph that cannot be read is reported and left out."""
    from tagrank.features.extraction import extract_features

    backbone = annotator.backbone(weights)
    if compile and new:
        backbone.compile_network()
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as executor:
        rows = extract_features(backbone, [Path(path) for path, _ in new.values()])
        for (name, (path, stamp)), (_, row) in zip(new.items(), rows, strict=True):
            if isinstance(row, InputError):
                on_error(row)
            else:
                # The file is still in the system's cache.
                yield name, row, executor.submit(stamp.with_content, path)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(items)
    while batch := list(islice(waiting, BATCH)):
        yield batch


def _stack(rows: "Sequence[Tensor]") -> "Tensor":
    import torch

    return torch.stack(list(rows))
