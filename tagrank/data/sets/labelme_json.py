"""The JSON files of the program labelme (https://github.com/wkentaro/labelme): one beside each image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tagrank.data.files import read_json
from tagrank.data.sets.records import SkipError
from tagrank.errors import InputError

KEYS = frozenset(("imagePath", "shapes", "label"))
"""The keys to keep of a file. Most of a file are outlines, and often the image itself."""


class Shapes(NamedTuple):
    """What a file says: the image's path relative to the file's folder, and the labels in the order of drawing."""

    image: str
    labels: Sequence[str]


def read_shapes(path: Path) -> Shapes:
    """Read a file.

    Raises:
        SkipError: the file is unreadable, damaged, or not labelme's.
    """
    try:
        record = read_json(path, keep=KEYS)
    except InputError as error:
        raise SkipError(path, "damaged JSON", str(error).removeprefix(f"{path}: ")) from error
    if not isinstance(record, dict) or record.keys() != {"imagePath", "shapes"}:
        raise SkipError(path, "not an annotation", "expected an object with imagePath and shapes")
    image, shapes = record["imagePath"], record["shapes"]
    if not isinstance(image, str) or not image.strip():
        raise SkipError(path, "no image named", f"expected a path, got {image!r:.60}")
    if not isinstance(shapes, list) or not all(isinstance(s, dict) and isinstance(s.get("label"), str) for s in shapes):
        raise SkipError(path, "not an annotation", f"expected shapes with labels, got {shapes!r:.60}")
    return Shapes(image.replace("\\", "/"), [shape["label"] for shape in shapes])
