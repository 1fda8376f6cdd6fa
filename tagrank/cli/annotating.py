"""``annotate``: write the ranked tags of photographs."""

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tagrank.cli.app import (
    CompileOption,
    DeviceOption,
    ExcludeOption,
    Format,
    NullOption,
    WeightsOption,
    check_inputs,
    chosen_device,
    command,
    find_model,
)
from tagrank.cli.engine import AddressOption, Engine, EngineOption, check_engine, start_engine
from tagrank.cli.list_writers import suggestion_writer, tag_writer, unlike_words
from tagrank.cli.photographs import expand_stdin
from tagrank.cli.terminal import Complaints, complain
from tagrank.cli.writing import WRITE_NOTHING, WriteTags, ranked
from tagrank.errors import InputError
from tagrank.model_files import check_model_or_file, is_exported, model_digest
from tagrank.options import ListOptions, split_tags


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


ModelOrFile = Annotated[
    Path,
    typer.Argument(
        help="Folder of a trained model, hf:ORG/NAME[@REVISION], or a file NAME.onnx of tagrank export.",
        show_default=False,
    ),
]


@command("tagrank annotate models/photos holiday/ --top-k 5 --format html > gallery.html")
def annotate(
    model: ModelOrFile,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of them, WebDataset shards (.tar), or - for paths on stdin.", show_default=False
        ),
    ],
    top_k: Annotated[int | None, typer.Option(help="Number of tags. Default: the model chooses.", min=1)] = None,
    format: Annotated[
        ListFormat, typer.Option(help="Format of the output. html is a page with small pictures, for a file.")
    ] = ListFormat.text,
    unknown: Annotated[
        Unknown, typer.Option(help="What to do with photographs that are unlike the training photographs.")
    ] = Unknown.mark,
    given: Annotated[
        str | None,
        typer.Option(
            help="The beginning of the list, written as for --include: write how the list goes on.",
            show_default=False,
        ),
    ] = None,
    lists: ListOptions = ListOptions(),
    write_tags: WriteTags = WRITE_NOTHING,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    compile: CompileOption = False,
    exclude_folder: ExcludeOption = None,
    null: NullOption = False,
    engine: EngineOption = Engine.local,
    address: AddressOption = None,
) -> None:
    """Write the ranked tags of photographs, the most important first.

    The number of a tag is the probability that it is on a person's list at all, early or late: it need not fall with
    the rank. A photograph that is unlike the training photographs is marked, or with --unknown skip left out and
    reported on stderr: what a model says of it means little.

    With --given, a list that a person began goes on: its rest, with the probability that a tag is in it, then the tags
    that may come next and END, each with its probability.

    With --write the tags on the list become keywords of the photographs, too; keywords that are there stay.

    What cannot be read or written is reported on stderr; the others are annotated, and the exit code is 1.
    """
    if format is ListFormat.html and sys.stdout.isatty():
        raise InputError("--format html: expected a file for the page: put `> gallery.html` behind the command")
    from tagrank.features.web_dataset import ShardImage, find_photographs
    from tagrank.progress import track

    check_engine(engine, address, compile)
    model = find_model(model, check_model_or_file)
    check_inputs(lists)
    if given is not None and format is ListFormat.html:
        raise InputError("--format html: shows lists of a model, not what follows --given: expected text, jsonl or csv")
    if given is not None and write_tags.write is not None:
        raise InputError("--given shows how lists go on, and writes no keywords: leave --write out")
    tagger = write_tags.tagger()
    failed = Complaints()
    found = find_photographs(expand_stdin(paths, null), exclude_folders=exclude_folder or (), on_error=failed)
    files = [path for path in found if not isinstance(path, ShardImage)]
    if (tagger is not None or format is ListFormat.html) and len(files) < len(found):
        raise InputError("--write and --format html are for photographs in files of their own, not in .tar archives")
    if tagger is not None and write_tags.remove:
        try:
            for path in track(files, "removing", sys.stderr.isatty()):
                tagger.remove(path, failed)
        finally:
            tagger.close()
        failed.exit()
        return
    if compile and is_exported(model):
        raise InputError(f"--compile: {model} is run by ONNX Runtime; expected the folder of a model")
    from tagrank.engines.jobs import AnnotateJob
    from tagrank.exporting import load_annotator

    if engine is Engine.local:
        annotator = load_annotator(model, device if is_exported(model) else chosen_device(device))
    else:
        annotator = load_annotator(model, device if is_exported(model) else "cpu")
        device = "cpu" if is_exported(model) else device
    if unknown is Unknown.skip and annotator.familiarity is None:
        raise InputError(
            f"--unknown skip: {model} does not say what its training photographs were like: train it again"
        )
    options = annotator.rank_options(lists)
    backbone = annotator.backbone(weights)
    if compile:
        backbone.compile_network()
    out, page = sys.stdout, None
    if format is ListFormat.html:
        from tagrank.evaluation.gallery import Gallery
        from tagrank.model_hub import Source

        page = Gallery(out, "Photographs with their tags", f"Tagged by {Source.of(model).label}")
    write: Callable[[Path, Any], None]
    if page is not None:
        write = page.add
    else:
        write = (tag_writer if given is None else suggestion_writer)(Format(format.value), out)
    if given is None:
        job = AnnotateJob(annotator, {"top_k": top_k, "members": tagger is not None, **options})
    else:
        job = AnnotateJob(annotator, {"top_k": top_k, **options}, split_tags("--given", given))
        job.run([])  # checks what was given
        if not annotator.reads_given:
            way = "take the model's folder" if is_exported(model) else "train without --no-completion"
            complain(f"{model}: does not read the given tags, it only leaves them out ({way})")
    name = model_digest(annotator.ranker, annotator.vocabulary.tags) if tagger is not None else ""
    # On one terminal a progress bar and results would overwrite each other.
    bar = sys.stderr.isatty() and not out.isatty()
    try:
        with start_engine(engine, address, device) as run:
            for path, tags in track(run(job, found), "annotating", bar, len(found)):
                if isinstance(tags, InputError):
                    failed(tags)
                elif unknown is Unknown.skip and tags.unknown:
                    complain(f"{path}: skipped: {unlike_words(tags)}")
                else:
                    try:
                        write(path, tags)
                    except InputError as error:  # its picture for the page cannot be read any more
                        failed(error)
                    if tagger is not None:
                        tagger.write(path, ranked(tags, name), failed)
    finally:
        if tagger is not None:
            tagger.close()
    if page is not None:
        page.close(failed.count)
    failed.exit()
