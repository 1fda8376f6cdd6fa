"""Scenes as files: pictures and their manifest."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tagrank.data.manifest import Example, write_manifest
from tagrank.data.scenes.composition import draw_scene

SPLITS: Mapping[str, float] = MappingProxyType({"train": 0.8, "val": 0.1, "test": 0.1})
FEW = 1000
"""So many scenes are drawn in this process, in three seconds; more are worth the start of others."""


def write_scenes(
    folder: str | Path, count: int, seed: int = 0, *, size: int = 64, splits: Mapping[str, float] = SPLITS
) -> Path:
    """Write the first ``count`` scenes of a series as PNG files, and then their manifest.

    Args:
        folder: the folder to write to. It is created if it does not exist; files with the same names are replaced.
        count: the number of scenes.
        seed: the seed of the series, from 0.
        size: the width and height of the pictures in pixels.
        splits: maps each split to its share of the scenes. The shares add up to 1. The series is divided in this order.

    Returns:
        The path of ``manifest.jsonl`` in ``folder``.

    Raises:
        ValueError: ``count`` is below 1, a share is negative, or the shares do not add up to 1; and whatever
            :func:`draw_scene` raises.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1 scene, got {count}")
    if any(share < 0 for share in splits.values()) or not np.isclose(sum(splits.values()), 1.0):
        raise ValueError(f"splits: expected shares >= 0 that add up to 1, got {dict(splits)}")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    ends = np.round(np.cumsum(list(splits.values())) * count)
    chosen = np.array(list(splits))[np.searchsorted(ends, np.arange(count), side="right")].tolist()
    examples = list(_in_processes(partial(_write_scene, folder, seed, size), enumerate(chosen), count))
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, examples)
    return manifest


def _write_scene(folder: Path, seed: int, size: int, numbered: tuple[int, str]) -> Example:
    """Draw a scene and write its picture. ``numbered``: its number in the series, and its split."""
    index, split = numbered
    scene = draw_scene(index, seed, size)
    name = f"images/{index:06d}.png"
    scene.image.save(folder / name)
    return Example(name, scene.tags, scene.lists, split)


def _in_processes(
    write: Callable[[tuple[int, str]], Example], scenes: Iterable[tuple[int, str]], count: int
) -> Iterator[Example]:
    """``map(write, scenes)``, in a process for each core if there are many scenes.

    The processes are copies of this one. So they start at once, and scripts need no ``if __name__ == "__main__"``. That
    is safe on Linux, and because they only draw. They leave Ctrl-C to this process.
    """
    workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if count <= FEW or workers == 1:
        yield from map(write, scenes)
        return
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=ignore) as pool:
        yield from pool.map(write, scenes, chunksize=50)
