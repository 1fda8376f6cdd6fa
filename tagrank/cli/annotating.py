"""``annotate``: write the ranked tags of photographs."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagrank.cli.app import ExcludeOption, Format, FormatOption, Model, NullOption, WeightsOption, command
from tagrank.cli.photographs import expand_stdin
from tagrank.cli.terminal import Complaints, shown
from tagrank.errors import InputError
from tagrank.options import ListOptions

if TYPE_CHECKING:
    from tagrank.decode import RankedTag


@command("tagrank annotate models/photos holiday/ --top-k 5 --format jsonl")
def annotate(
    model: Model,
    paths: Annotated[
        list[str], typer.Argument(help="Images, folders of them, or - for paths on stdin.", show_default=False)
    ],
    top_k: Annotated[int | None, typer.Option(help="Number of tags. Default: the model chooses.", min=1)] = None,
    format: FormatOption = Format.text,
    lists: ListOptions = ListOptions(),
    weights: WeightsOption = None,
    exclude_folder: ExcludeOption = None,
    null: NullOption = False,
) -> None:
    """Write the ranked tags of photographs.

    What cannot be read is reported on stderr; the others are annotated, and the exit code is 1.
    """
    from tagrank.annotator import Annotator
    from tagrank.features.folders import find_images
    from tagrank.progress import track

    failed = Complaints()
    found = find_images(expand_stdin(paths, null), exclude_folders=exclude_folder or (), on_error=failed)
    annotator = Annotator.load(model)
    options = annotator.rank_options(lists)
    annotator.backbone(weights)
    write = _writer(format)
    results = annotator.annotate(found, top_k=top_k, **options)
    # On one terminal a progress bar and results would overwrite each other.
    for path, tags in track(results, "annotating", sys.stderr.isatty() and not sys.stdout.isatty(), len(found)):
        if isinstance(tags, InputError):
            failed(tags)
        else:
            write(path, tags)
    failed.exit()


def _writer(format: Format) -> Callable[[Path, Sequence["RankedTag"]], None]:
    """A function that writes one photograph's tags to stdout, and flushes."""
    if format is Format.text:
        return lambda path, tags: print(
            shown(f"{path}: {', '.join(f'{t.tag} ({t.score:.2f})' for t in tags)}"), flush=True
        )
    if format is Format.jsonl:
        return lambda path, tags: print(
            json.dumps({"image": str(path), "tags": [_rounded(t) for t in tags]}), flush=True
        )
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["image", "rank", "tag", "score"])

    def write(path: Path, tags: Sequence["RankedTag"]) -> None:
        rows.writerows([str(path), t.rank, t.tag, _rounded(t)["score"]] for t in tags)
        sys.stdout.flush()

    return write


def _rounded(tag: "RankedTag") -> dict[str, Any]:
    """A tag as a dictionary. The score is rounded to six decimals; further decimals depend on the batch."""
    return tag._asdict() | {"score": round(tag.score, 6)}
