"""Where the files of a COCO data set are: as COCO publishes them, and as tools export them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tagrank.errors import InputError

ROBOFLOW = "_annotations.coco.json"
LABEL_STUDIO = "result.json"


class Part(NamedTuple):
    """A part of a data set.

    Attributes:
        file: the annotations.
        folders: where the images may be, the most likely folder first.
        split: ``train``, ``val``, ``test``, or None.
    """

    file: Path
    folders: tuple[Path, ...]
    split: str | None


def find_parts(root: Path, kind: str, parts: Sequence[str] = ()) -> dict[str, Part]:
    """Find the annotation files of a folder.

    ======================  =======================================  ===============================
    written by              annotations                              images
    ======================  =======================================  ===============================
    COCO, CVAT, Datumaro    ``annotations/KIND_PART.json``           ``images/PART`` or ``PART``
    Roboflow                ``PART/_annotations.coco.json``          ``PART``
    Label Studio            ``result.json``                          ``images``
    ======================  =======================================  ===============================

    Args:
        root: the folder.
        kind: ``instances`` or ``captions``; Roboflow and Label Studio write only the former.
        parts: the parts to find, such as ``train2017``. If empty, all parts are returned.

    Raises:
        InputError: one of ``parts`` is missing, or there are no annotation files.
    """
    found = {path.stem.removeprefix(f"{kind}_"): path for path in sorted((root / "annotations").glob(f"{kind}_*.json"))}
    if not found and kind == "instances":
        exported = sorted([*root.glob(ROBOFLOW), *root.glob(f"*/{ROBOFLOW}"), *root.glob(LABEL_STUDIO)])
        found = {_name(path, kind): path for path in exported}
    if not found:
        exports = f", PART/{ROBOFLOW} or {LABEL_STUDIO}" if kind == "instances" else ""
        expected = f"expected files annotations/{kind}_PART.json{exports}"
        raise InputError(f"{root}: {expected}, got none; --annotations takes any other file")
    absent = [part for part in parts if part not in found]
    if absent:
        raise InputError(f"{root}: there is no {kind}_{absent[0]}.json; parts in this folder: {', '.join(found)}")
    return {
        part: Part(path, _folders(root, part, path), split_of(part))
        for part, path in ((part, found[part]) for part in parts or found)
    }


def single_part(file: Path, images: Path | None, kind: str) -> Part:
    """The part that an annotation file is.

    Args:
        file: the annotations.
        images: the folder of the images; if None, the file's folder, or ``images`` beside it.
        kind: as for :func:`find_parts`.
    """
    # The names of images may begin with the name of their folder.
    folders = (images, images.parent) if images is not None else (file.parent, file.parent / "images")
    return Part(file, folders, split_of(_name(file, kind)))


def split_of(part: str) -> str | None:
    """The split that a part's name begins with: ``train``, ``val``, ``test``, or None."""
    return next((split for split in ("train", "val", "test") if part.startswith(split)), None)


def _name(file: Path, kind: str) -> str:
    return file.absolute().parent.name if file.name == ROBOFLOW else file.stem.removeprefix(f"{kind}_")


def _folders(root: Path, part: str, file: Path) -> tuple[Path, ...]:
    if file.name == ROBOFLOW:
        return (file.parent,)
    folders = (root / "images" / part, root / part, root / "images", root)
    there = [folder for folder in folders if folder.is_dir()]
    # Without a folder of its own or a common one, the error should name the part's.
    return tuple(there) if there[:1] != [root] else (root / part, root)
