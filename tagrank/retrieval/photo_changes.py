"""What became of the photographs of an index: which are as they were, which were moved, and which must be computed.

A file is as it was if its size and the time of its last change are those of when it was read. If only the time is
another, its content is compared, by a digest. So is the content of a file under a new name, with those of files of the
same size: a photograph that was moved or copied is not computed again. A photograph of which the index knows neither
size nor time, because an earlier version wrote it, is computed again.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tagrank.data.spellings import file_key
from tagrank.retrieval.photo_shard import UNKNOWN, Stamp
from tagrank.retrieval.update import IndexUpdate, Photo, order


@dataclass
class Changes:
    """What an update of an index has to do, besides what is kept already.

    Attributes:
        new: the names of photographs to compute, each with its path and the stamp of its file; in the index's order.
        there: how many of the given photographs the index has, and keeps.
        known: how many others were computed before: by an interrupted update, or under another name.
        left: how many leave the index: they are gone, or changed and are computed again.
    """

    new: dict[str, tuple[str, Stamp]] = field(default_factory=dict)
    there: int = 0
    known: int = 0
    left: int = 0


def keep_what_is_known(
    update: IndexUpdate, paths: Iterable[str], folders: Iterable[str] = (), *, refresh: bool = True
) -> Changes:
    """Have an update keep all predictions that are still right.

    Args:
        update: of the index.
        paths: of the photographs that the index is to have.
        folders: in which photographs that are not among the paths leave the index if they are gone.
        refresh: whether photographs leave the index and are compared with their files at all.
    """
    root = update.root
    changes = Changes()
    by_key = {file_key(os.path.join(root or "", name)): photo for name, photo in update.photos.items()}
    given: dict[str, str] = {}
    for path in paths:
        given.setdefault(file_key(path), path)
    missing: list[tuple[str, str, Stamp]] = []
    for key, path in given.items():
        photo, now = by_key.get(key), stamp_of(path)
        same = photo and _same(photo, path, now, refresh)
        if photo and same:
            update.keep(photo, _below(root, photo.name), same)
            changes.there += 1
        else:
            name = path if root is None else os.path.abspath(path)
            missing.append((_below(root, photo.name if photo else name), path, now or UNKNOWN))
            changes.left += photo is not None
    moved = _keep_from_elsewhere(update, missing, changes)
    below = tuple(f"{file_key(folder)}/".replace("//", "/") for folder in folders)
    for key, photo in by_key.items():
        if key in given:
            continue
        where = os.path.join(root or "", photo.name)
        if refresh and (key.startswith(below) or photo.stamp.content in moved) and stamp_of(where) is None:
            changes.left += 1
        else:
            update.keep(photo, _below(root, photo.name))
    changes.new = dict(sorted(changes.new.items(), key=lambda item: order(item[0])))
    return changes


def stamp_of(path: str | Path) -> Stamp | None:
    """The stamp of a photograph's file. None if there is no such file, and unknown if that cannot be found out."""
    try:
        return Stamp.of(path)
    except (OSError, ValueError):
        return UNKNOWN


def _same(photo: Photo, path: str, now: Stamp | None, refresh: bool) -> Stamp | None:
    """The stamp that a photograph has from now on if its predictions are those of its file; None if they are not."""
    if not refresh or now == UNKNOWN or (now and photo.stamp.is_of(now)):
        return photo.stamp
    if now is None or not photo.stamp.content or photo.stamp.size != now.size:
        return None
    now = now.with_content(path)
    return now if now.content == photo.stamp.content else None


def _keep_from_elsewhere(
    update: IndexUpdate, missing: Iterable[tuple[str, str, Stamp]], changes: Changes
) -> set[bytes]:
    """Keep, for photographs that are missing, what was computed for the same content. Returns these contents."""
    by_size: dict[int, dict[bytes, Photo]] = {}
    for photo in update.photos.values():
        if photo.stamp.content:
            by_size.setdefault(photo.stamp.size, {})[photo.stamp.content] = photo
    moved: set[bytes] = set()
    for name, path, now in missing:
        computed = update.computed.get(name)
        if computed is not None and computed.stamp.is_of(now):
            update.keep(computed)
            changes.known += 1
            continue
        twins = by_size.get(now.size)
        stamp = now.with_content(path) if twins else now
        if twins and stamp.content in twins:
            twin = twins[stamp.content]
            update.keep(twin, name, stamp)
            moved.add(stamp.content)
            changes.known += 1
        else:
            changes.new[name] = (path, now)
    return moved


def _below(root: str | None, name: str) -> str:
    """The name of a photograph: relative to the root if it is an absolute path below it."""
    return name if root is None else name.removeprefix(root.rstrip("/") + "/")
