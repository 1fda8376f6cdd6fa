"""Open Images, versions V2 to V7: annotation files in CSV.

The formats are described at https://storage.googleapis.com/openimages/web/download_v7.html. There are three:

- boxes, with the columns ``ImageID``, ``LabelName``, ``XMin``, ``XMax``, ``YMin``, ``YMax`` (fractions of the image's
  width or height);
- labels of the whole image, with the columns ``ImageID``, ``LabelName``, ``Confidence``;
- class descriptions: each row has a label and its name.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tagrank.data.sets.delimited import read_image_rows, read_rows
from tagrank.data.sets.importance import Seen, rank_by_importance
from tagrank.data.sets.records import ImageFolder, Record, SkipError, make_record
from tagrank.data.spellings import tag_name
from tagrank.errors import InputError

BOXES = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
LABELS = ("ImageID", "LabelName", "Confidence")
SPLIT = re.compile(r"(?:^|[-_])(train|validation|test)(?=[-_.])")

Rows = Sequence[tuple[str, list[str]]]


def read_classes(path: Path, tag: Callable[[str], str] = tag_name) -> dict[str, str]:
    """Read a file that maps labels, such as ``/m/0199g``, to tags, which are the names of classes.

    Args:
        path: the file. Its first row is a header if its first field does not begin with ``/``.
        tag: makes a tag from a name.

    Raises:
        InputError: the file cannot be read or is not a list of classes.
    """
    classes: dict[str, str] = {}
    for line, row in read_rows(path):
        if len(row) != 2:
            raise InputError(
                f"{path}, line {line}: expected two columns, a class's label and its name; got {row!r:.60}"
            )
        label, name = row[0].strip(), tag(row[1])
        if not label.startswith("/") and line == 1:
            continue
        if not label.startswith("/") or not name:
            raise InputError(f"{path}, line {line}: expected a label such as /m/0199g and a name, got {row!r:.60}")
        if classes.setdefault(label, name) != name:
            raise InputError(f"{path}, line {line}: the label {label} already has the name {classes[label]!r}")
    if not classes:
        raise InputError(f"{path}: expected labels and names of classes, got none")
    return classes


def split_of(path: Path) -> str | None:
    """The split that a file's name contains: ``train``, ``validation`` or ``test``; None if it contains none."""
    found = SPLIT.search(path.name)
    return found[1] if found else None


def read_openimages(path: Path, classes: Mapping[str, str], images: ImageFolder, split: str | None) -> Iterator[Record]:
    """Read the images of one annotation file. Only the rows of one image are kept in memory at a time.

    Boxes are ranked by :func:`rank_by_importance`. Labels of the whole image are ranked by confidence, ties in
    alphabetical order. Labels with confidence 0 were verified to be absent and are left out.

    Args:
        path: the annotations. The rows of each image must be adjacent, as they are in the published files.
        classes: maps labels to names, as :func:`read_classes` returns them.
        images: the folder of the images ``ImageID.jpg``.
        split: the part of the data that the images belong to, or None.

    Raises:
        InputError: the file cannot be read, or has neither the columns of boxes nor the columns of labels.
    """
    for group in read_image_rows(path, lambda header: BOXES if "XMin" in header else LABELS):
        if isinstance(group, SkipError):
            yield group
            continue
        image, rows = group
        where = rows[0][0]
        try:
            if not image or "/" in image:
                raise SkipError(where, "no image named", repr(image))
            boxes = len(rows[0][1]) == len(BOXES)
            tags = _by_importance(rows, classes) if boxes else _by_confidence(rows, classes)
            if not tags:
                raise SkipError(where, "no labels", fault=False)
            yield make_record(where, images.name(f"{image}.jpg"), [tags], split)
        except SkipError as skip:
            yield skip


def _by_importance(rows: Rows, classes: Mapping[str, str]) -> Sequence[str]:
    objects = []
    for where, (_, label, *corners) in rows:
        x0, x1, y0, y1 = (_fraction(where, corner) for corner in corners)
        if x0 > x1 or y0 > y1:
            raise SkipError(where, "box inside out", ", ".join(corners))
        objects.append(Seen(_name(where, label, classes), (x1 - x0) * (y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2))
    return rank_by_importance(objects)


def _by_confidence(rows: Rows, classes: Mapping[str, str]) -> Sequence[str]:
    confidences: dict[str, float] = {}
    for where, (_, label, text) in rows:
        confidence = _fraction(where, text)
        if confidence > 0:
            name = _name(where, label, classes)
            confidences[name] = max(confidence, confidences.get(name, 0.0))
    return sorted(confidences, key=lambda name: (-confidences[name], name))


def _name(where: str, label: str, classes: Mapping[str, str]) -> str:
    try:
        return classes[label]
    except KeyError:
        raise SkipError(where, "class without a description", label) from None


def _fraction(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise SkipError(where, "not a number from 0 to 1", repr(text))
    return value
