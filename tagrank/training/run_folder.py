"""The state of a run, in folders inside the model's folder. Only this module changes these folders.

``training`` is the run that the model comes from. A run that is to replace an existing model is in ``training.new``
until it is finished. Each has ``settings.json`` from its first moment on, checkpoints, features that were computed for
it, ``left-out.json`` if images cannot be read, and ``history.json`` once it is finished.

A process that trains locks the model's folder. It may be killed at any moment:

- A file is written beside its place, flushed to the disk and renamed, so that it is old or new and never half.
- A folder is made beside its place, with its settings in it, and renamed.
- A folder that goes is renamed first and deleted then.

What a killed process leaves under temporary names is deleted by the next process that locks the folder.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tagrank.data.files import (
    leftovers,
    lock_folder,
    read_json,
    reason,
    sync_folder,
    temporary_path,
    write_atomically,
)
from tagrank.data.schema import read_as
from tagrank.data.shards import some
from tagrank.errors import InputError
from tagrank.model_files import COMPLETER, CONFIG, FAMILIARITY, SEEN, VOCABULARY, WEIGHTS

TRAINING, NEW = "training", "training.new"
SETTINGS = "settings.json"
HISTORY = "history.json"
LEFT_OUT = "left-out.json"
BEST, LAST = "best.ckpt", "last.ckpt"


@contextmanager
def open_run(
    out: Path,
    settings: Mapping[str, Any],
    earlier: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Path]:
    """The folder of a run, while other processes are kept out of the model's folder.

    Args:
        out: the model's folder.
        settings: of the run. A new run has them in ``settings.json``, a run to resume must have begun with them.
        earlier: settings that an earlier version of tagrank would have written otherwise.
        resume: whether to continue the run that began with these settings.
        overwrite: whether a new run may replace a model or an unfinished run.

    Raises:
        InputError: another process is training in ``out``; something in ``out`` has the name of one of our files and is
            not ours; the folder cannot be made; no run to resume began with these settings; or there is a model or an
            unfinished run, and neither ``resume`` nor ``overwrite``.
    """
    if resume and not out.is_dir():
        raise InputError(f"{out}: nothing to resume: {out / TRAINING / SETTINGS} is missing")
    lock = lock_folder(out)
    try:
        try:
            run = _resume(out, settings, earlier or {}) if resume else _begin(out, settings, overwrite)
        except OSError as error:
            raise InputError(f"{out}: cannot be used: {reason(error)}") from error
        yield run
    finally:
        os.close(lock)


def _begin(out: Path, settings: Mapping[str, Any], overwrite: bool) -> Path:
    """Make the folder of a new run, which contains only the run's settings."""
    found = _runs(out)
    _clean(out, found)
    # A run with nothing but its settings did not get far: nothing is lost with it.
    runs = [folder for folder in found if os.listdir(folder) != [SETTINGS]]
    model = (out / CONFIG).exists()
    if not overwrite and (runs or model):
        raise InputError(
            f"{out}: there is a model or an unfinished run already; go on with --resume, replace it with "
            "--overwrite, or choose another folder"
        )
    run = out / (NEW if model or out / TRAINING in runs else TRAINING)
    made = temporary_path(run)
    made.mkdir()
    write_atomically(made / SETTINGS, [json.dumps(settings, indent=2).encode(), b"\n"])
    if found and not model:
        # Without a configuration and without a run, nobody could tell whose files these are.
        for name in (WEIGHTS, VOCABULARY, FAMILIARITY, COMPLETER, SEEN):
            (out / name).unlink(missing_ok=True)
    for folder in sorted({run, out / NEW}):
        _discard(folder)
    _move(made, run)
    return run


def _resume(out: Path, settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> Path:
    """Find the folder of the run that began with these settings."""
    runs = _runs(out)
    _clean(out, runs)
    if not runs:
        raise InputError(f"{out}: nothing to resume: {out / TRAINING / SETTINGS} is missing")
    for folder, before in runs.items():
        changed = [k for k in settings if before.get(k) not in (settings[k], earlier.get(k, settings[k]))]
        if not changed:
            return folder
    was = ", ".join(f"{key} {before.get(key)!r}, now {settings[key]!r}" for key in changed)
    raise InputError(f"{out}: cannot resume with other settings: was {was}")


def replace_model(out: Path, run: Path) -> None:
    """Let a finished run take the place of the run before it, and remove the old model's configuration.

    The configuration goes first, because a model's folder with a configuration is complete and from one run.

    Raises:
        OSError: the folder cannot be changed.
    """
    (out / CONFIG).unlink(missing_ok=True)
    sync_folder(out)
    if run.name == NEW:
        _discard(out / TRAINING)
        _move(run, out / TRAINING)


def _move(folder: Path, to: Path) -> None:
    """Rename a folder, for good when this returns. ``to`` does not exist."""
    folder.rename(to)
    sync_folder(to.parent)


def _discard(folder: Path) -> None:
    """Delete a folder if it exists. It vanishes at once; its files are deleted then."""
    if folder.exists() or folder.is_symlink():
        gone = temporary_path(folder)
        _move(folder, gone)
        _delete(gone)


def _delete(path: Path) -> None:
    """Delete what has a temporary name. If that fails, it does no harm, and the next process tries again."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _clean(out: Path, runs: Iterable[Path]) -> None:
    """Delete what killed processes left under temporary names."""
    for folder, names in [
        (out, (TRAINING, NEW, CONFIG, VOCABULARY, WEIGHTS, FAMILIARITY, COMPLETER, SEEN)),
        *((run, (SETTINGS, HISTORY, LEFT_OUT, BEST, LAST)) for run in runs),
    ]:
        for path in leftovers(folder, "|".join(map(re.escape, names))):
            _delete(path)


def write_checkpoint(path: Path, content: bytes | memoryview) -> None:
    """Write a checkpoint of a run. The one before it stays until the new one is on the disk.

    Raises:
        OSError: the file cannot be written; the one before it is unchanged.
    """
    write_atomically(path, [content])


def keep_left_out(run: Path, images: Sequence[str], *, resume: bool) -> None:
    """Write down which images a run leaves out, because they cannot be read; or compare, if it goes on.

    Raises:
        InputError: the run that goes on left out other images, or the file cannot be written.
    """
    path = run / LEFT_OUT
    if resume and (run / LAST).exists():
        before = read_as(path, list[str], "the images that a run leaves out") if path.exists() else []
        changed = sorted(set(before) ^ set(images))
        if changed:
            raise InputError(f"{run}: cannot resume: other images can be read than before: {some(changed)}")
    elif images or path.exists():
        try:
            write_atomically(path, [json.dumps(images, indent=0).encode(), b"\n"])
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {reason(error)}") from error


def has_run(folder: str | Path) -> bool:
    """Whether a model's folder has a run, finished or not, that can be resumed."""
    return any((Path(folder) / name / SETTINGS).is_file() for name in (NEW, TRAINING))


def is_finished(run: Path) -> bool:
    """Whether a run has come to its end: its history is written last."""
    return (run / HISTORY).is_file()


def write_history(run: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write the metrics of each epoch of a run, which is then finished.

    Raises:
        InputError: the file cannot be written.
    """
    path = run / HISTORY
    try:
        write_atomically(path, [json.dumps(history, indent=1, allow_nan=False).encode(), b"\n"])
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error


def read_history(folder: str | Path) -> list[dict[str, float]]:
    """The metrics of each epoch of the model in a folder; empty if the folder has no history.

    Raises:
        InputError: the history is damaged, or is not what training writes.
    """
    path = Path(folder) / TRAINING / HISTORY
    if not path.is_file():
        return []
    history = read_as(path, list[dict[str, float]], "the metrics of each epoch")
    if not is_history(history):
        raise InputError(f"{path}: expected the metrics of each epoch, got {history!r:.60}")
    return history


def is_history(value: object) -> bool:
    """Whether a value is the metrics of each epoch of a run."""
    return isinstance(value, list) and len(value) > 0 and all(map(_is_epoch, value))


def _is_epoch(metrics: object) -> bool:
    return (
        isinstance(metrics, dict)
        and {"epoch", "val_ndcg@5"} <= metrics.keys()
        and all(type(value) in (int, float) for value in metrics.values())
    )


def _runs(out: Path) -> dict[Path, dict[str, Any]]:
    """The folders of the runs in a model's folder, newest first, with the settings of each.

    Raises:
        InputError: something has the name of one of our files and is not ours, so that it must not be replaced.
    """
    runs: dict[Path, dict[str, Any]] = {}
    for folder in (out / NEW, out / TRAINING):
        path = folder / SETTINGS
        settings = read_json(path) if path.is_file() else None
        if isinstance(settings, dict) and "preset" in settings:
            runs[folder] = settings
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: not the folder of a training run: it has no {SETTINGS}; choose another folder")
    config = out / CONFIG
    if config.exists():
        content = read_json(config)
        if not isinstance(content, dict) or not {"format", "ranker"} <= content.keys():
            raise InputError(f"{config}: not the configuration of a model; choose another folder")
    elif not runs:
        for path in (out / WEIGHTS, out / VOCABULARY):
            if path.exists():
                raise InputError(f"{path}: not of a model that was trained here; choose another folder")
    return runs
