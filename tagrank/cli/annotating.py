"""``annotate``: write the ranked tags of photographs."""

import csv
import json
import math
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagrank.cli.app import (
    DeviceOption,
    ExcludeOption,
    Model,
    NullOption,
    WeightsOption,
    check_inputs,
    chosen_device,
    command,
    find_model,
)
from tagrank.cli.photographs import expand_stdin
from tagrank.cli.terminal import Complaints, complain, shown
from tagrank.errors import InputError
from tagrank.options import ListOptions

if TYPE_CHECKING:
    from tagrank.decode import RankedTag, TagList

UNLIKE = "unlike the training photographs"


class ListFormat(str, Enum):
    """The format of the output on stdout."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"
    html = "html"


class Unknown(str, Enum):
    """What to do with photographs that are unlike the training photographs."""

    mark = "mark"
    skip = "skip"


@command("tagrank annotate models/photos holiday/ --top-k 5 --format html > gallery.html")
def annotate(
    model: Model,
    paths: Annotated[
        list[str], typer.Argument(help="Images, folders of them, or - for paths on stdin.", show_default=False)
    ],
    top_k: Annotated[int | None, typer.Option(help="Number of tags. Default: the model chooses.", min=1)] = None,
    format: Annotated[
        ListFormat, typer.Option(help="Format of the output. html is a page with small pictures, for a file.")
    ] = ListFormat.text,
    unknown: Annotated[
        Unknown, typer.Option(help="What to do with photographs that are unlike the training photographs.")
    ] = Unknown.mark,
    lists: ListOptions = ListOptions(),
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    exclude_folder: ExcludeOption = None,
    null: NullOption = False,
) -> None:
    """Write the ranked tags of photographs, the most important first.

    The number of a tag is the probability that it is on a person's list at all, early or late: it need not fall with
    the rank. A photograph that is unlike the training photographs is marked, or with --unknown skip left out and
    reported on stderr: what a model says of it means little.

    What cannot be read is reported on stderr; the others are annotated, and the exit code is 1.
    """
    if format is ListFormat.html and sys.stdout.isatty():
        raise InputError("--format html: expected a file for the page: put `> gallery.html` behind the command")
    from tagrank.features.folders import find_images
    from tagrank.progress import track

    model = find_model(model)
    check_inputs(lists)
    failed = Complaints()
    found = find_images(expand_stdin(paths, null), exclude_folders=exclude_folder or (), on_error=failed)
    from tagrank.annotator import Annotator

    annotator = Annotator.load(model, chosen_device(device))
    if unknown is Unknown.skip and annotator.familiarity is None:
        raise InputError(
            f"--unknown skip: {model} does not say what its training photographs were like: train it again"
        )
    options = annotator.rank_options(lists)
    annotator.backbone(weights)
    page = None
    if format is ListFormat.html:
        from tagrank.evaluation.gallery import Gallery
        from tagrank.model_hub import Source

        page = Gallery(sys.stdout, "Photographs with their tags", f"Tagged by {Source.of(model).label}")
    write = _writer(format) if page is None else page.add
    results = annotator.annotate(found, top_k=top_k, **options)
    # On one terminal a progress bar and results would overwrite each other.
    for path, tags in track(results, "annotating", sys.stderr.isatty() and not sys.stdout.isatty(), len(found)):
        if isinstance(tags, InputError):
            failed(tags)
        elif unknown is Unknown.skip and tags.unknown:
            complain(f"{path}: skipped: {UNLIKE} ({tags.unlike:.3f})")
        else:
            try:
                write(path, tags)
            except InputError as error:  # its picture for the page cannot be read any more
                failed(error)
    if page is not None:
        page.close(failed.count)
    failed.exit()


def _writer(format: ListFormat) -> Callable[[Path, "TagList"], None]:
    """A function that writes one photograph's tags to stdout, and flushes."""
    if format is ListFormat.text:
        return lambda path, tags: print(shown(_line(path, tags)), flush=True)
    if format is ListFormat.jsonl:
        return lambda path, tags: print(json.dumps(_record(path, tags)), flush=True)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["image", "rank", "tag", "score", "unlike"])

    def write(path: Path, tags: "TagList") -> None:
        unlike = _record(path, tags)["unlike"]
        rows.writerows([str(path), t.rank, t.tag, _rounded(t)["score"], unlike] for t in tags)
        sys.stdout.flush()

    return write


def _line(path: Path, tags: "TagList") -> str:
    mark = f"; {UNLIKE} ({tags.unlike:.3f})" if tags.unknown else ""
    return f"{path}: {', '.join(f'{t.tag} ({t.score:.2f})' for t in tags)}{mark}"


def _record(path: Path, tags: "TagList") -> dict[str, Any]:
    """``unlike`` is None if the model does not know."""
    unlike = None if math.isnan(tags.unlike) else round(tags.unlike, 6)
    return {"image": str(path), "unlike": unlike, "tags": [_rounded(t) for t in tags]}


def _rounded(tag: "RankedTag") -> dict[str, Any]:
    """A tag as a dictionary. The score is rounded to six decimals; further decimals depend on the batch."""
    return tag._asdict() | {"score": round(tag.score, 6)}
