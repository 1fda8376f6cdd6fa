"""Finds the photographs in folders."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.features.camera_files import HEIC, RAW, extras_for, readable_suffixes
from tagrank.features.images import formats

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
AVIF = ".avif"
"""Read if Pillow can."""
OTHERS = (AVIF, ".jp2", ".jxl", *HEIC, *RAW)
"""Suffixes of pictures that cannot be read, or only with an extra. Those that are left out are counted in a line."""
JUNK = (
    *("@eaDir", "#recycle", "#snapshot", "@tmp", "@Recycle", "@Recently-Snapshot", ".*"),
    *(
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "RECYCLER",
        "System Volume Information",
        "lost+found",
        "__MACOSX",
        "Network Trash Folder",
    ),
)
"""Folders of thumbnails, of deleted files and of systems' own files, and hidden folders. ``*`` stands for any text."""


def find_images(
    paths: Iterable[str | Path],
    *,
    exclude_folders: Sequence[str] = (),
    on_error: Callable[[InputError], None] | None = None,
) -> list[Path]:
    """List the image files that paths stand for.

    A folder stands for the images below it, sorted by path. They are recognised by their suffix, in any case:
    :data:`SUFFIXES`, and those of HEIC and raw files if the package that reads them is installed. Hidden files and the
    folders :data:`JUNK` are left out, and links to folders are not followed. Pictures that cannot be read
    (:data:`OTHERS`) are left out too, and counted in a line on stderr, which says what to install. Any other path is
    returned as it is, whether the file exists or not; :func:`tagrank.features.images.read_image` reports what is wrong
    with it.

    Args:
        paths: folders and files.
        exclude_folders: folders to leave out: names, in which ``*`` stands for any text, or paths. Folders in ``paths``
            themselves are not left out.
        on_error: called with the error of each folder that cannot be read or has no images, if there are images
            elsewhere. None: the error is raised.

    Raises:
        InputError: a folder cannot be read or has no images, and there is no ``on_error``, or no image at all.
    """
    images: list[Path] = []
    errors: list[InputError] = []
    for path in map(Path, paths):
        images.extend(images_below(path, exclude_folders, errors) if is_folder(path) else [path])
    report_errors(errors, on_error if images else None)
    return images


def report_errors(errors: Iterable[InputError], report: Callable[[InputError], None] | None) -> None:
    """Report each error, or raise the first if there is nobody to report to."""
    for error in errors:
        if report is None:
            raise error
        report(error)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False if that cannot be found out."""
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or a folder above is locked
        return False


def image_suffixes() -> tuple[str, ...]:
    """With what the names of image files end that can be read, in lower case."""
    return (*SUFFIXES, *((AVIF,) if "AVIF" in formats() else ()), *readable_suffixes())


def images_below(folder: Path, exclude: Sequence[str], errors: list[InputError]) -> list[Path]:
    """The images below a folder, as :func:`find_images` finds them.

    Args:
        folder: the folder.
        exclude: ``exclude_folders``.
        errors: gets the error of each folder that cannot be read, or of ``folder`` if it has no images.
    """
    suffixes = image_suffixes()
    found: list[Path] = []
    others: Counter[str] = Counter()
    unread: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=unread.append):
        folders[:] = [name for name in folders if not _excluded(root, name, (*JUNK, *exclude))]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes and not name.startswith("."):
                found.append(Path(root, name))
            elif suffix in OTHERS and not name.startswith("."):
                others[suffix] += 1
    errors += (InputError(f"{error.filename}: {reason(error)}") for error in unread)
    left = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items())) + extras_for(others.keys())
    if not found and not unread:
        got = f"; got {left}" if left else ""
        errors.append(
            InputError(f"{folder}: no images in this folder; expected files named {', '.join(suffixes)}{got}")
        )
    elif left:
        print(f"tagrank: {folder}: left out, because they cannot be read: {left}", file=sys.stderr)
    return sorted(found)


def _excluded(root: str, name: str, patterns: Sequence[str]) -> bool:
    """Whether a folder has a name that is left out, or is a folder that is left out by its path."""
    return any(
        fnmatchcase(name, pattern.rstrip("/"))
        or ("/" in pattern and os.path.abspath(os.path.join(root, name)) == os.path.abspath(pattern))
        for pattern in patterns
    )
