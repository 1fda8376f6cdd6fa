"""COCO: objects ranked by importance, or tags in the order in which captions mention them.

The format is described at https://cocodataset.org/#format-data. Tools that export it write ids as integers, as integral
floating point or as text, and may leave out areas.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from tagrank.data.files import read_json
from tagrank.data.sets.importance import Seen, rank_by_importance
from tagrank.data.sets.names import Mentions, read_words
from tagrank.data.sets.records import ImageFolders, Record, SkipError, make_record
from tagrank.data.spellings import tag_name
from tagrank.errors import InputError

# The keys to keep of a file. Most of a file are outlines of objects; without them the rest fits in memory.
KEYS = "images annotations categories id name file_name width height image_id category_id bbox area caption"

LARGEST = 1e12
"""An upper bound of sizes and areas: larger than any number of pixels."""

Ranking = Callable[[str, Mapping[str, Any], Sequence[Mapping[str, Any]]], Sequence[Sequence[str]]]


def default_words() -> dict[str, str]:
    """Maps the names that captions use to COCO's 80 categories."""
    return read_words(Path(str(files("tagrank.data.sets").joinpath("coco_words.txt"))))


def read_instances(
    path: Path, images: ImageFolders, split: str | None, tag: Callable[[str], str] = tag_name
) -> Iterator[Record]:
    """Read the images of an instances file, with their objects ranked by :func:`rank_by_importance`.

    An object's area is the area of its outline. A crowd counts as one object. The whole file except the outlines is
    held in memory.

    Args:
        path: the file.
        images: the folders that ``file_name`` may be relative to.
        split: the part of the data that the images belong to, or None.
        tag: makes a tag from the name of a category.

    Raises:
        InputError: the file cannot be read or is not an instances file.
    """
    record = _read(path, ("images", "annotations", "categories"))
    categories: dict[str, str] = {}
    for category in record["categories"]:
        number, name = _id(path, category, "id"), tag(_text(path, category, "name"))
        if categories.setdefault(number, name) != name or not name:
            raise InputError(f"{path}: categories: expected each id once and with a name, got {category!r:.80}")

    def rank(where: str, image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
        width, height = image.get("width"), image.get("height")
        if not (_is_number(width) and _is_number(height) and width > 0 and height > 0):
            raise SkipError(where, "image without a size", f"{width!r:.30} x {height!r:.30}")
        return [rank_by_importance(_seen(path, thing, categories, width, height) for thing in objects)]

    return _records(path, record, images, split, rank)


def read_captions(path: Path, images: ImageFolders, split: str | None, words: Mapping[str, str]) -> Iterator[Record]:
    """Read the images of a captions file. Each caption gives one list: its tags in the order of first mention.

    A caption that mentions no tag gives no list.

    Args:
        path: the file.
        images: the folders that ``file_name`` may be relative to.
        split: the part of the data that the images belong to, or None.
        words: maps names to tags, as :func:`~tagrank.data.sets.names.read_words` returns them.

    Raises:
        InputError: the file cannot be read or is not a captions file.
    """
    mentions = Mentions(words)

    def rank(_: str, __: Mapping[str, Any], captions: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        found = [mentions.find(_text(_where(path, caption), caption, "caption")) for caption in captions]
        return [tags for tags in found if tags]

    return _records(path, _read(path, ("images", "annotations")), images, split, rank)


def _read(path: Path, lists: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    record = read_json(path, keep=frozenset(KEYS.split()))
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected an object with {', '.join(lists)}, got {record!r:.60}")
    for name in lists:
        value = record.get(name)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise InputError(f"{path}: {name}: expected a list of objects, got {value!r:.60}")
    return record


def _records(
    path: Path, record: Mapping[str, list[dict[str, Any]]], images: ImageFolders, split: str | None, rank: Ranking
) -> Iterator[Record]:
    annotations: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for annotation in record["annotations"]:
        try:
            annotations[_id(_where(path, annotation), annotation, "image_id")].append(annotation)
        except SkipError as skip:
            skip.image = False
            yield skip
    seen: set[str] = set()
    for image in record["images"]:
        where = f"{path}: image {image.get('id')!r:.60}"
        try:
            number = _id(where, image, "id")
            if number in seen:
                raise SkipError(where, "id of two images")
            seen.add(number)
            name = images.name(_text(where, image, "file_name"))
            lists = rank(where, image, annotations[number]) if number in annotations else []
            if not lists:
                raise SkipError(where, "nothing to list", fault=False)
            yield make_record(where, name, lists, split)
        except SkipError as skip:
            yield skip
    for number in annotations.keys() - seen:
        yield SkipError(path, "annotations of an image that is not listed", f"image_id {number}", image=False)


def _seen(path: Path, thing: Mapping[str, Any], categories: Mapping[str, str], width: float, height: float) -> Seen:
    where = _where(path, thing)
    category = _id(where, thing, "category_id")
    if category not in categories:
        raise SkipError(where, "object of an unknown category", category)
    box = thing.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        raise SkipError(where, "object without a box", f"bbox is {box!r:.60}")
    x, y, w, h = box
    area = w * h if thing.get("area") is None else thing["area"]
    if not _is_number(area) or area < 0:
        raise SkipError(where, "object without an area", f"area is {area!r:.60}")
    return Seen(categories[category], min(1.0, area / (width * height)), (x + w / 2) / width, (y + h / 2) / height)


def _where(path: Path, annotation: Mapping[str, Any]) -> str:
    return f"{path}: annotation {annotation.get('id')!r:.60}"


def _id(where: object, record: Mapping[str, Any], key: str) -> str:
    """An id: ``7``, ``7.0`` and ``"7"`` are the same."""
    value = record.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value).strip()
    raise SkipError(where, f"{key} missing or of the wrong type", f"expected a whole number or text, got {value!r:.60}")


def _text(where: object, record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise SkipError(where, f"{key} missing or of the wrong type", f"expected text, got {value!r:.60}")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    # JSON integers have any length. Values beyond LARGEST are rejected: they could overflow a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST
