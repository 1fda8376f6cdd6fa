"""LabelMe: XML files in ``Annotations/<folder>``, photographs in ``Images/<folder>``; or JSON files beside photographs.

The XML files are of the web tool (B. C. Russell, A. Torralba, K. P. Murphy and W. T. Freeman, "LabelMe: a database and
web-based tool for image annotation", IJCV 2008), the JSON files of the program of that name
(:mod:`tagrank.data.sets.labelme_json`). Each file has the objects of one image, in the order in which people drew them.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tagrank.data.files import reason
from tagrank.data.sets.labelme_json import read_shapes
from tagrank.data.sets.names import Names
from tagrank.data.sets.records import ImageFolder, Record, SkipError, make_record
from tagrank.data.sets.xml_files import read_xml, text_of
from tagrank.errors import InputError


def read_labelme(annotations: Path, images: ImageFolder, names: Names) -> Iterator[Record]:
    """Read the annotated images, folder by folder. The tags are the objects' names in the order of the file.

    Objects that are marked as deleted or have no name are left out. The image of ``Annotations/a/b.xml`` is
    ``Images/a/NAME``. ``NAME`` is the file name in the XML file, or ``b.jpg`` if the XML file has none. The image of
    ``a/b.json`` is at the path that it says, from the folder ``a`` of either the annotations or the images.

    Args:
        annotations: the folder of the annotations.
        images: the folder of the images.
        names: turns the objects' names into tags.

    Raises:
        InputError: the folder cannot be read, or has neither XML nor JSON files.
    """
    none = True
    for path in _files(annotations):
        none = False
        try:
            if isinstance(path, SkipError):
                raise path
            read = _from_json if path.suffix.lower() == ".json" else _from_xml
            image, labels = read(path, path.relative_to(annotations).parent, images)
            tags = [tag for label in labels if (tag := names.tag(label))]
            if not tags:
                raise SkipError(path, "no objects", fault=False)
            yield make_record(path, image, [tags], None)
        except SkipError as skip:
            yield skip
    if none:
        raise InputError(f"{annotations}: expected XML or JSON files in this folder, got none")


def _from_xml(path: Path, folder: Path, images: ImageFolder) -> tuple[str, list[str]]:
    """The image and the names of its objects."""
    annotation = read_xml(path, "annotation")
    file = text_of(annotation, "filename") or f"{path.stem}.jpg"
    if "/" in file or "\\" in file or file in (".", ".."):
        raise SkipError(path, "file name with a folder", file)
    image = images.name((folder / file).as_posix())
    things = [thing for thing in annotation.findall("object") if text_of(thing, "deleted") in ("", "0")]
    return image, [text_of(thing, "name") for thing in things]


def _from_json(path: Path, folder: Path, images: ImageFolder) -> tuple[str, Sequence[str]]:
    """The image and the names of its objects."""
    file, labels = read_shapes(path)
    beside = os.path.abspath(path.parent / file)
    return images.name(beside if images.has(beside) else os.path.normpath(folder / file)), labels


def _files(folder: Path) -> Iterator[Path | SkipError]:
    """The annotation files, and the errors of folders that cannot be read."""
    unread: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=unread.append, followlinks=True):
        above = {os.path.realpath(parent) for parent in (Path(root), *Path(root).parents)}
        # A link to a folder above would make the walk endless.
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(root, name)) not in above)
        yield from (Path(root, name) for name in sorted(files) if name.lower().endswith((".xml", ".json")))
    for error in unread:
        if error.filename == str(folder):
            raise InputError(f"{folder}: {reason(error)}") from error
        yield SkipError(error.filename, "folder that cannot be read", reason(error), image=False)
