"""Scenes as files: pictures and their manifest."""

import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

import numpy as np

from tagrank.cores import cores
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
    if count > FEW:
        drawn = _draw_in_processes(folder, seed, size, count)
    else:
        drawn = (_draw(folder, seed, size, index) for index in range(count))
    numbered = enumerate(zip(drawn, chosen, strict=True))
    examples = [Example(_name(index), tags, lists, split) for index, ((tags, lists), split) in numbered]
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, examples)
    return manifest


def _draw(folder: Path, seed: int, size: int, index: int) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Write the picture of a scene. Returns its tags and the lists of all people."""
    scene = draw_scene(index, seed, size)
    scene.image.save(folder / _name(index))
    return scene.tags, scene.lists


def _name(index: int) -> str:
    return f"images/{index:06d}.png"


def _draw_in_processes(folder: Path, seed: int, size: int, count: int) -> Iterator[Any]:
    """What :func:`_draw` returns for each scene, drawn by a process for each core. They end if this one does."""
    step = cores()
    paths = [str(path) for path in sys.path]
    code = f"import sys; sys.path[:] = {paths!r}; from {__name__} import _answer; _answer(*sys.argv[1:])"
    with ExitStack() as stack:
        processes = []
        for first in range(step):
            task = map(str, (folder, seed, size, first, count, step))
            # A terminal's Ctrl-C is for this process only, so the others are in a session of their own.
            command = [sys.executable, "-c", code, *task]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append((process, stack.enter_context(cast("IO[bytes]", process.stdout))))
        for index in range(count):
            process, stdout = processes[index % step]
            try:
                answer = pickle.load(stdout)
            except EOFError:
                raise RuntimeError(f"scene {index}: the process that drew it ended with {process.wait()}") from None
            except pickle.UnpicklingError as error:
                raise RuntimeError(f"scene {index}: the process that drew it wrote something else: {error}") from None
            if isinstance(answer, Exception):
                raise answer
            yield answer


def _answer(folder: str, *numbers: str) -> None:
    """Draw every so many scenes, and write what that returned to stdout, for the process that asked for it."""
    seed, size, first, count, step = map(int, numbers)
    with suppress(BrokenPipeError):
        for index in range(first, count, step):
            try:
                answer: object = _draw(Path(folder), seed, size, index)
            except (OSError, ValueError) as error:
                answer = error
            pickle.dump(answer, sys.stdout.buffer)
            sys.stdout.buffer.flush()
