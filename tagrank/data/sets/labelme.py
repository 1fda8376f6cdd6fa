"""LabelMe: XML files in ``Annotations/<folder>``, photographs in ``Images/<folder>``.

B. C. Russell, A. Torralba, K. P. Murphy and W. T. Freeman, "LabelMe: a database and web-based tool for image
annotation", IJCV 2008. Each file has the objects of one image, in the order in which people drew them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from tagrank.data.files import reason
from tagrank.data.sets.names import Names
from tagrank.data.sets.records import ImageFolder, Record, SkipError, make_record
from tagrank.data.sets.xml_files import read_xml, text_of
from tagrank.errors import InputError


def read_labelme(annotations: Path, images: ImageFolder, names: Names) -> Iterator[Record]:
    """Read the annotated images, folder by folder. The tags are the objects' names in the order of the file.

    Objects that are marked as deleted or have no name are left out. The image of ``Annotations/a/b.xml`` is
    ``Images/a/NAME``. ``NAME`` is the file name in the XML file, or ``b.jpg`` if the XML file has none.

    Args:
        annotations: the folder ``Annotations``.
        images: the folder ``Images``.
        names: turns the objects' names into tags.

    Raises:
        InputError: the folder cannot be read or has no XML files.
    """
    none = True
    for path in _xml_files(annotations):
        none = False
        try:
            yield _example(path, path.relative_to(annotations).parent, images, names)
        except SkipError as skip:
            yield skip
    if none:
        raise InputError(f"{annotations}: expected XML files in this folder, got none")


def _example(path: Path, folder: Path, images: ImageFolder, names: Names) -> Record:
    annotation = read_xml(path, "annotation")
    file = text_of(annotation, "filename") or f"{path.stem}.jpg"
    if "/" in file or "\\" in file or file in (".", ".."):
        raise SkipError(path, "file name with a folder", file)
    image = images.name((folder / file).as_posix())
    things = [thing for thing in annotation.findall("object") if text_of(thing, "deleted") in ("", "0")]
    tags = [tag for thing in things if (tag := names.tag(text_of(thing, "name")))]
    if not tags:
        raise SkipError(path, "no objects", fault=False)
    return make_record(path, image, [tags], None)


def _xml_files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: {reason(error)}") from error

    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        above = {os.path.realpath(parent) for parent in (Path(root), *Path(root).parents)}
        # A link to a folder above would make the walk endless.
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(root, name)) not in above)
        yield from (Path(root, name) for name in sorted(files) if name.lower().endswith(".xml"))
