"""COCO: objects ranked by importance, or tags in the order in which captions mention them.

The format is described at https://cocodataset.org/#format-data. The part ``train2017`` consists of the files
``annotations/instances_train2017.json`` and ``annotations/captions_train2017.json``, with the photographs in the folder
``train2017``. Other parts are named in the same way.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from tagrank.data.files import read_json
from tagrank.data.sets.importance import Seen, rank_by_importance
from tagrank.data.sets.names import Mentions, read_words
from tagrank.data.sets.records import ImageFolder, Record, SkipError, make_record
from tagrank.data.spellings import tag_name
from tagrank.errors import InputError

# The keys to keep of a file. Most of a file are outlines of objects; without them the rest fits in memory.
KEYS = "images annotations categories id name file_name width height image_id category_id bbox area caption"

LARGEST = 1e12
"""An upper bound of sizes and areas: larger than any number of pixels."""

Ranking = Callable[[str, Mapping[str, Any], Sequence[Mapping[str, Any]]], Sequence[Sequence[str]]]


def find_parts(root: Path, kind: str, parts: Sequence[str] = ()) -> dict[str, tuple[Path, Path]]:
    """Find the annotation files of a folder, and the folders of their images.

    Args:
        root: the folder that contains ``annotations``.
        kind: ``instances`` or ``captions``.
        parts: the parts to find, such as ``train2017``. If empty, all parts are returned.

    Returns:
        Maps each part to its annotation file and its folder of images: ``root/images/PART`` if that folder exists,
        otherwise ``root/PART``.

    Raises:
        InputError: one of ``parts`` is missing, or there are no annotation files.
    """
    folder = root / "annotations"
    found = {path.stem.removeprefix(f"{kind}_"): path for path in sorted(folder.glob(f"{kind}_*.json"))}
    if not found:
        raise InputError(f"{folder}: expected files {kind}_PART.json, got none")
    absent = [part for part in parts if part not in found]
    if absent:
        raise InputError(f"{folder}: there is no {kind}_{absent[0]}.json; parts in this folder: {', '.join(found)}")

    def images(part: str) -> Path:
        inner = root / "images" / part
        return inner if inner.is_dir() else root / part

    return {part: (found[part], images(part)) for part in parts or found}


def split_of(part: str) -> str | None:
    """The split that a part's name begins with: ``train``, ``val``, ``test``, or None."""
    return next((split for split in ("train", "val", "test") if part.startswith(split)), None)


def default_words() -> dict[str, str]:
    """Maps the names that captions use to COCO's 80 categories."""
    return read_words(Path(str(files("tagrank.data.sets").joinpath("coco_words.txt"))))


def read_instances(
    path: Path, images: ImageFolder, split: str | None, tag: Callable[[str], str] = tag_name
) -> Iterator[Record]:
    """Read the images of an instances file, with their objects ranked by :func:`rank_by_importance`.

    An object's area is the area of its outline. A crowd counts as one object. The whole file except the outlines is
    held in memory.

    Args:
        path: the file.
        images: the folder that ``file_name`` is relative to.
        split: the part of the data that the images belong to, or None.
        tag: makes a tag from the name of a category.

    Raises:
        InputError: the file cannot be read or is not an instances file.
    """
    record = _read(path, ("images", "annotations", "categories"))
    categories: dict[int, str] = {}
    for category in record["categories"]:
        number, name = _get(path, category, "id", int), tag(_get(path, category, "name", str))
        if categories.setdefault(number, name) != name or not name:
            raise InputError(f"{path}: categories: expected each id once and with a name, got {category!r:.80}")

    def rank(where: str, image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
        width, height = _get(where, image, "width", int), _get(where, image, "height", int)
        if not (0 < width < LARGEST and 0 < height < LARGEST):
            raise SkipError(where, "image without a size", f"{width} x {height}"[:60])
        return [rank_by_importance(_seen(path, thing, categories, width, height) for thing in objects)]

    return _records(path, record, images, split, rank)


def read_captions(path: Path, images: ImageFolder, split: str | None, words: Mapping[str, str]) -> Iterator[Record]:
    """Read the images of a captions file. Each caption gives one list: its tags in the order of first mention.

    A caption that mentions no tag gives no list.

    Args:
        path: the file.
        images: the folder that ``file_name`` is relative to.
        split: the part of the data that the images belong to, or None.
        words: maps names to tags, as :func:`~tagrank.data.sets.names.read_words` returns them.

    Raises:
        InputError: the file cannot be read or is not a captions file.
    """
    mentions = Mentions(words)

    def rank(_: str, __: Mapping[str, Any], captions: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        found = [mentions.find(_get(_where(path, caption), caption, "caption", str)) for caption in captions]
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
    path: Path, record: Mapping[str, list[dict[str, Any]]], images: ImageFolder, split: str | None, rank: Ranking
) -> Iterator[Record]:
    annotations: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in record["annotations"]:
        try:
            annotations[_get(_where(path, annotation), annotation, "image_id", int)].append(annotation)
        except SkipError as skip:
            skip.image = False
            yield skip
    seen: set[int] = set()
    for image in record["images"]:
        where = f"{path}: image {image.get('id')!r:.60}"
        try:
            number = _get(where, image, "id", int)
            if number in seen:
                raise SkipError(where, "id of two images")
            seen.add(number)
            name = images.name(_get(where, image, "file_name", str))
            lists = rank(where, image, annotations[number]) if number in annotations else []
            if not lists:
                raise SkipError(where, "nothing to list", fault=False)
            yield make_record(where, name, lists, split)
        except SkipError as skip:
            yield skip
    for number in annotations.keys() - seen:
        yield SkipError(path, "annotations of an image that is not listed", f"image_id {number}", image=False)


def _seen(path: Path, thing: Mapping[str, Any], categories: Mapping[int, str], width: int, height: int) -> Seen:
    where = _where(path, thing)
    category = _get(where, thing, "category_id", int)
    if category not in categories:
        raise SkipError(where, "object of an unknown category", category)
    box = thing.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        raise SkipError(where, "object without a box", f"bbox is {box!r:.60}")
    x, y, w, h = box
    area = thing.get("area", w * h)
    if not _is_number(area) or area < 0:
        raise SkipError(where, "object without an area", f"area is {area!r:.60}")
    return Seen(categories[category], min(1.0, area / (width * height)), (x + w / 2) / width, (y + h / 2) / height)


def _where(path: Path, annotation: Mapping[str, Any]) -> str:
    return f"{path}: annotation {annotation.get('id')!r:.60}"


T = TypeVar("T", int, str)


def _get(where: object, record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if type(value) is not kind:
        raise SkipError(where, f"{key} missing or of the wrong type", f"expected {kind.__name__}, got {value!r:.60}")
    return value


def _is_number(value: object) -> bool:
    # JSON integers have any length. Values beyond LARGEST are rejected: they could overflow a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST
