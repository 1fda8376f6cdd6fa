"""``tagrank prepare``: writes manifests of published data sets.

Exit codes: 0, done; 1, done, but images with faults were left out; 2, bad input; 130, Ctrl-C.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagrank.cli.app import command
from tagrank.cli.terminal import SHOWN, Complaints
from tagrank.errors import InputError
from tagrank.options import option

if TYPE_CHECKING:
    from tagrank.data.sets.records import Record

STDIN = Path("/dev/stdin")

app = typer.Typer(
    help="Write the manifest of a data set: its images with ordered tags.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


class OnError(str, Enum):
    """What to do with an image that has a fault."""

    fail = "fail"
    skip = "skip"


class VOCOrder(str, Enum):
    """How VOC's tags are ordered."""

    lists = "lists"
    importance = "importance"


class COCOOrder(str, Enum):
    """How COCO's tags are ordered."""

    importance = "importance"
    captions = "captions"


Out = Annotated[
    Path,
    typer.Option(help="The manifest to write. Its folder must contain the images, at any depth.", show_default=False),
]


@dataclass(frozen=True)
class WriteOptions:
    """The options that all data sets share."""

    on_error: OnError = option(OnError.fail, "If an image has a fault: stop, or leave it out and exit with 1.")
    min_count: int = option(1, "Leave out tags that fewer than this many images have.", min=1)
    check_images: bool = option(True, "Whether the images must exist.", flag="--check-images/--no-check-images")
    lower_case: bool = option(False, "Write tags in lower case, so that Dog and dog are one.", flag="--lower-case")
    overwrite: bool = option(False, "Replace an existing manifest.", flag="--overwrite")

    @property
    def tag(self) -> Callable[[str], str]:
        """Makes a tag from a name in a data set."""
        from tagrank.data.spellings import lower_tag_name, tag_name

        return lower_tag_name if self.lower_case else tag_name

    def write(self, records: Callable[[], "Iterator[Record]"], out: Path, *inputs: Path) -> None:
        """Write the manifest ``out`` and print what was written and what was left out.

        Args:
            records: reads the data set. It may be called twice.
            out: the manifest.
            *inputs: files that ``records`` reads and that may be pipes. A pipe is read only once; the records are then
                kept in memory if they are needed twice.

        Raises:
            InputError: ``out`` may not be written, the data set is damaged, or an image has a fault and ``on_error`` is
                ``fail``.
            typer.Exit: images with faults were left out. The exit code is 1.
        """
        from tagrank.data.sets.records import write_records
        from tagrank.progress import track

        if out.exists() and not self.overwrite:
            raise InputError(f"{out}: the file already exists; add --overwrite or choose another name")
        if out.exists() and out.suffix != ".jsonl":
            raise InputError(f"{out}: --overwrite replaces only files named .jsonl")
        if not out.parent.is_dir():
            raise InputError(f"{out}: its folder does not exist")
        if self.min_count > 1 and not all(path.is_file() for path in inputs):
            kept = list(records())
            records = lambda: iter(kept)  # noqa: E731
        faults = Complaints(SHOWN)
        try:
            counts = write_records(
                lambda: track(records(), "reading"),
                out,
                skip_faults=self.on_error is OnError.skip,
                min_count=self.min_count,
                on_fault=faults,
            )
        finally:
            faults.close()
        typer.echo(f"{out}: {counts.read} images read, {counts.written} written with {counts.tags} different tags")
        for kind, count in counts.skipped.most_common():
            typer.echo(f"left out: {count}, {kind}")
        if counts.faults:
            raise typer.Exit(1)


@command("tagrank prepare voc2007 data/ --lists data/tags/ --out data/voc2007.jsonl", app)
def voc2007(
    root: Annotated[Path, typer.Argument(help="The folder that contains VOCdevkit/VOC2007.", show_default=False)],
    out: Out,
    lists: Annotated[
        Path | None, typer.Option(help="The folder of Hwang and Grauman's train.mat, test.mat and voc.mat.")
    ] = None,
    order: Annotated[
        VOCOrder | None,
        typer.Option(help="As people named the objects (lists, the default), or by area and place (importance)."),
    ] = None,
    difficult: Annotated[
        bool, typer.Option(help="With --order importance: include objects marked as difficult.")
    ] = False,
    truncated: Annotated[
        bool, typer.Option(help="With --order importance: include objects cut off by the image's edge.")
    ] = True,
    *,
    options: WriteOptions,
) -> None:
    """PASCAL VOC 2007: people's ordered tag lists, or objects by importance."""
    from tagrank.data.sets.records import ImageFolder
    from tagrank.data.sets.voc2007 import find_voc2007, read_importance, read_lists

    if lists is None and order is not VOCOrder.importance:
        raise InputError(
            "--lists: expected the folder of the ordered tag lists, got none; --order importance works without it"
        )
    if lists is not None and order is VOCOrder.importance:
        raise InputError("--lists cannot be used with --order importance")
    if lists is not None and (difficult or not truncated):
        raise InputError("--difficult and --no-truncated need --order importance")
    folder = find_voc2007(root)
    images = ImageFolder(folder / "JPEGImages", out, options.check_images)
    records = (
        partial(read_importance, folder, images, difficult=difficult, truncated=truncated, tag=options.tag)
        if lists is None
        else partial(read_lists, lists, images, options.tag)
    )
    options.write(records, out)


@command("tagrank prepare labelme LabelMe/ --min-count 50 --on-error skip --out LabelMe/labelme.jsonl", app)
def labelme(
    root: Annotated[
        Path,
        typer.Argument(
            help="The folder that contains Annotations and Images, or JSON files beside images.", show_default=False
        ),
    ],
    out: Out,
    synonyms: Annotated[
        Path | None, typer.Option(help="Text file with one tag and its other names per line: 'person: man, woman'.")
    ] = None,
    plurals: Annotated[bool, typer.Option(help="Replace plurals by their singular.")] = True,
    *,
    options: WriteOptions,
) -> None:
    """LabelMe: objects in the order in which people drew them."""
    from tagrank.data.sets.labelme import read_labelme
    from tagrank.data.sets.names import Names, read_words
    from tagrank.data.sets.records import ImageFolder

    names = Names(read_words(synonyms) if synonyms else None, plurals)
    apart = any((root / name).is_dir() for name in ("Annotations", "Images"))
    images = ImageFolder(root / "Images" if apart else root, out, options.check_images)
    options.write(partial(read_labelme, root / "Annotations" if apart else root, images, names), out)


@command("tagrank prepare coco coco/ --order captions --part train2017 --part val2017 --out coco/captions.jsonl", app)
def coco(
    out: Out,
    order: Annotated[
        COCOOrder,
        typer.Option(help="By area and place of the objects (importance), or as captions mention them (captions)."),
    ],
    root: Annotated[
        Path | None,
        typer.Argument(
            help="The folder of annotations and images, as COCO, CVAT, Roboflow or Label Studio write it.",
            show_default=False,
        ),
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="Instead of ROOT: one file of annotations.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="With --annotations: the folder of the images. Default: the file's folder.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="A part to read, such as train2017. May be given more than once. Default: all parts."),
    ] = None,
    words: Annotated[
        Path | None,
        typer.Option(
            help="With --order captions: text file with one tag and its other names per line: 'person: man, woman'."
        ),
    ] = None,
    *,
    options: WriteOptions,
) -> None:
    """COCO: objects by importance, or one list per caption."""
    from tagrank.data.sets.coco import default_words, read_captions, read_instances
    from tagrank.data.sets.coco_layouts import find_parts, single_part
    from tagrank.data.sets.names import read_words
    from tagrank.data.sets.records import ImageFolders

    captions = order is COCOOrder.captions
    kind = "captions" if captions else "instances"
    if words is not None and not captions:
        raise InputError("--words needs --order captions")
    if images is not None and annotations is None:
        raise InputError("--images goes with --annotations")
    if annotations is not None and part:
        raise InputError("--part goes with ROOT, not with --annotations")
    if annotations is not None and root is None:
        parts = [single_part(annotations, images, kind)]
    elif root is not None and annotations is None:
        parts = list(find_parts(root, kind, part or ()).values())
    else:
        raise InputError("expected ROOT, or --annotations instead; not both")
    vocabulary = (read_words(words) if words else default_words()) if captions else {}
    readers = [
        partial(read_captions, file, ImageFolders(folders, out, options.check_images), split, vocabulary)
        if captions
        else partial(read_instances, file, ImageFolders(folders, out, options.check_images), split, options.tag)
        for file, folders, split in parts
    ]
    options.write(lambda: chain.from_iterable(read() for read in readers), out, *(part.file for part in parts))


@command(
    "tagrank prepare openimages train-annotations-bbox.csv --classes class-descriptions-boxable.csv "
    "--images images/ --out openimages.jsonl",
    app,
)
def openimages(
    annotations: Annotated[
        list[Path], typer.Argument(help="CSV files of boxes or of image-level labels.", show_default=False)
    ],
    images: Annotated[
        Path,
        typer.Option(help="The folder of the images ImageID.jpg, or of train, validation and test that contain them."),
    ],
    classes: Annotated[Path, typer.Option(help="The CSV file of class descriptions.")],
    out: Out,
    *,
    options: WriteOptions,
) -> None:
    """Open Images: boxes by importance, or image-level labels by confidence."""
    from tagrank.data.sets.openimages import read_classes, read_openimages, split_of
    from tagrank.data.sets.records import ImageFolder

    names = read_classes(classes, options.tag)
    readers = []
    for path in annotations:
        split = split_of(path)
        inner = images / split if split else images
        folder = ImageFolder(inner if inner.is_dir() else images, out, options.check_images)
        readers.append(partial(read_openimages, path, names, folder, split))
    options.write(lambda: chain.from_iterable(read() for read in readers), out, *annotations)


@command("tagrank prepare csv photos.csv --separator ';' --out photos.jsonl", app)
def csv(
    file: Annotated[
        Path,
        typer.Argument(help="The CSV file, or - for stdin. Each row has an image and its tags.", show_default=False),
    ],
    out: Out,
    images: Annotated[
        Path | None,
        typer.Option(
            help="The folder that image paths are relative to. Default: FILE's, or the current one for pipes."
        ),
    ] = None,
    image_column: Annotated[str, typer.Option(help="The column of image paths.")] = "image",
    tags_column: Annotated[str, typer.Option(help="The column of tags, the most important first.")] = "tags",
    split_column: Annotated[str | None, typer.Option(help="The column of splits: train, val or test.")] = None,
    separator: Annotated[str, typer.Option(help="The text between the tags of a list.")] = ",",
    delimiter: Annotated[str, typer.Option(help="The character between columns, or 'tab'.")] = ",",
    *,
    options: WriteOptions,
) -> None:
    """Any CSV file. Adjacent rows with the same image are the lists of several people."""
    from tagrank.data.sets.csv_file import read_csv
    from tagrank.data.sets.records import ImageFolder

    file = STDIN if str(file) == "-" else file
    piped = file.is_fifo() or file.is_relative_to("/dev")
    delimiter = "\t" if delimiter == "tab" else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(
            f"--delimiter: expected 'tab' or one character that is not a quote or line end, got {delimiter!r}"
        )
    if not separator:
        raise InputError("--separator: expected at least one character, got none")
    records = partial(
        read_csv,
        file,
        ImageFolder(images or (Path() if piped else file.parent), out, options.check_images),
        image_column=image_column,
        tags_column=tags_column,
        split_column=split_column,
        separator=separator,
        delimiter=delimiter,
        tag=options.tag,
    )
    options.write(records, out, file)
