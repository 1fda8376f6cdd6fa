"""PASCAL VOC 2007: the ordered tag lists of Hwang and Grauman, or objects ranked by importance.

The lists come from S. J. Hwang and K. Grauman, "Learning the relative importance of objects from tagged images for
retrieval and cross-modal search", IJCV 2012. People named what they saw in the photographs, in their own order.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagrank.data.files import read_text
from tagrank.data.sets.importance import Seen, rank_by_importance
from tagrank.data.sets.mat_files import load_mat
from tagrank.data.sets.records import ImageFolder, Record, SkipError, make_record
from tagrank.data.sets.xml_files import read_xml, text_of
from tagrank.data.spellings import tag_name
from tagrank.errors import InputError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SPLITS = ("train", "val", "test")
LISTS = {"train": "train.mat", "test": "test.mat"}
WORDS = "voc.mat"


def find_voc2007(root: Path) -> Path:
    """Find the folder ``VOC2007``, which contains ``JPEGImages``.

    Args:
        root: the folder ``VOC2007``, its parent ``VOCdevkit``, or the parent of ``VOCdevkit`` (torchvision's ``root``).

    Raises:
        InputError: none of these folders contains ``JPEGImages``.
    """
    for folder in (root / "VOCdevkit" / "VOC2007", root / "VOC2007", root):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise InputError(f"{root}: expected VOCdevkit/VOC2007/JPEGImages in this folder")


def read_importance(
    folder: Path,
    images: ImageFolder,
    *,
    difficult: bool = False,
    truncated: bool = True,
    tag: Callable[[str], str] = tag_name,
) -> Iterator[Record]:
    """Read the images that ``ImageSets/Main`` lists, with their objects ranked by :func:`rank_by_importance`.

    Args:
        folder: the folder ``VOC2007``.
        images: the folder ``JPEGImages``.
        difficult: include objects that are marked as difficult. VOC's own evaluation leaves them out.
        truncated: include objects that are marked as truncated, because they extend beyond the image.
        tag: makes a tag from the name of an object.

    Raises:
        InputError: there is no list of images, or a list is damaged.
    """
    main = folder / "ImageSets" / "Main"
    splits = [split for split in SPLITS if (main / f"{split}.txt").is_file()]
    if not splits:
        raise InputError(f"{main}: expected train.txt, val.txt or test.txt, got none of these files")
    for split in splits:
        for image in _image_set(main / f"{split}.txt"):
            annotation = folder / "Annotations" / f"{image}.xml"
            try:
                name = images.name(f"{image}.jpg")
                tags = _ranked(annotation, difficult, truncated, tag)
            except SkipError as skip:
                yield skip
            else:
                yield make_record(annotation, name, [tags], split)


def read_lists(folder: Path, images: ImageFolder, tag: Callable[[str], str] = tag_name) -> Iterator[Record]:
    """Read the images of the ordered tag lists. The tags are in the order in which people named them.

    Args:
        folder: contains ``train.mat`` and ``test.mat``, which have struct arrays ``D1`` and ``D2`` with the fields
            ``filename`` and ``taglist``; and ``voc.mat``, which has the words. A ``taglist`` has word numbers, from 1.
        images: the folder ``JPEGImages``.
        tag: makes a tag from a word.

    Raises:
        InputError: a file is missing or damaged, or has other contents.
    """
    words = [tag(word) for word in _words(folder / WORDS)]
    for split, file in LISTS.items():
        path = folder / file
        arrays = load_mat(path, ("D1", "D2"))
        for array in ("D1", "D2"):
            if array not in arrays:
                raise InputError(f"{path}: expected the struct arrays D1 and D2, there is no {array}")
            structs = arrays[array]
            fields = structs.dtype.names or ()
            if not {"filename", "taglist"} <= set(fields):
                raise InputError(
                    f"{path}: {array}: expected a struct array with filename and taglist, got {', '.join(fields)}"
                )
            for number, struct in enumerate(structs.ravel(), 1):
                where = f"{path}: {array}({number})"
                try:
                    name = images.name(_file_name(where, struct["filename"]))
                    tags = _tag_list(where, struct["taglist"], words)
                except SkipError as skip:
                    yield skip
                else:
                    yield make_record(where, name, [tags], split)


def _image_set(path: Path) -> Iterator[str]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if len(line.split()) > 1 or "/" in line or "\0" in line:
            raise InputError(f"{path}, line {number}: expected the number of an image, got {line!r:.60}")
        if line.strip():
            yield line.strip()


def _ranked(path: Path, difficult: bool, truncated: bool, tag: Callable[[str], str]) -> tuple[str, ...]:
    annotation = read_xml(path, "annotation")
    width, height = (_number(path, annotation, f"size/{side}") for side in ("width", "height"))
    if width < 1 or height < 1:
        raise SkipError(path, "image without a size", f"{width:g} x {height:g}")
    objects = [
        _seen(path, thing, tag, width, height)
        for thing in annotation.findall("object")
        if (difficult or text_of(thing, "difficult") != "1") and (truncated or text_of(thing, "truncated") != "1")
    ]
    if not objects:
        raise SkipError(path, "no objects", fault=False)
    return rank_by_importance(objects)


def _seen(path: Path, thing: "Element", tag: Callable[[str], str], width: float, height: float) -> Seen:
    """Read an object. Its box is in pixels, counted from 1, and includes both ends."""
    name = tag(text_of(thing, "name"))
    if not name:
        raise SkipError(path, "object without a name")
    if thing.find("bndbox") is None:
        raise SkipError(path, "object without a box", name)
    x0, y0, x1, y1 = (_number(path, thing, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
    if x1 < x0 or y1 < y0:
        raise SkipError(path, "box inside out", f"{name} [{x0:g}, {y0:g}, {x1:g}, {y1:g}]")
    area = (x1 - x0 + 1) * (y1 - y0 + 1) / (width * height)
    return Seen(name, min(1.0, area), (x0 + x1 - 1) / 2 / width, (y0 + y1 - 1) / 2 / height)


def _number(path: Path, element: "Element", where: str) -> float:
    text = text_of(element, where)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SkipError(path, "not a number", f"{where} is {text!r:.60}")
    return value


def _words(path: Path) -> list[str]:
    variables = load_mat(path)
    if len(variables) > 1 and "voc" in variables:
        variables = {"voc": variables["voc"]}
    if len(variables) != 1:
        raise InputError(f"{path}: expected one variable, a cell array of words; got {', '.join(variables) or 'none'}")
    ((name, array),) = variables.items()
    cells = array.ravel() if isinstance(array, np.ndarray) and array.dtype.kind in "OU" else ()
    words = [_text(cell) for cell in cells]
    for number, word in enumerate(words, 1):
        if not word:
            raise InputError(f"{path}: {name}: expected words, word {number} is {cells[number - 1]!r:.60}")
    if not words:
        raise InputError(f"{path}: {name}: expected a cell array of words, got none")
    return [str(word) for word in words]


def _text(cell: Any) -> str | None:
    """The text in a struct's field or in a cell, possibly nested in more cells; None if it holds anything else."""
    array = np.asarray(cell)
    while array.dtype.kind == "O" and array.size == 1 and array.ndim:
        array = np.asarray(array.reshape(-1)[0])
    return str(array.reshape(-1)[0]).strip() if array.dtype.kind == "U" and array.size == 1 else None


def _file_name(where: str, cell: Any) -> str:
    text = _text(cell)
    if not text:
        raise SkipError(where, "no file name", f"{cell!r:.60}")
    return f"{Path(text.replace(chr(92), '/')).stem}.jpg"


def _tag_list(where: str, cell: Any, words: list[str]) -> list[str]:
    numbers = np.asarray(cell)
    if numbers.size == 0:
        raise SkipError(where, "empty list", fault=False)
    if numbers.dtype.kind not in "uif" or numbers.ndim > 2 or 1 not in (numbers.ndim, *numbers.shape):
        raise SkipError(where, "taglist not a row of numbers", f"{numbers.dtype} {list(numbers.shape)}")
    for number in numbers.ravel().tolist():
        if number != number // 1 or not 1 <= number <= len(words):
            raise SkipError(where, "taglist number without a word", f"expected 1 to {len(words)}, got {number:g}")
    return [words[int(number) - 1] for number in numbers.ravel().tolist()]
