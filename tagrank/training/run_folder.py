"""The state of a run, in folders inside the model's folder.

``training`` is the run that the model comes from. A run that is to replace an existing model is in ``training.new``
until it is finished. Each has ``settings.json`` from its first moment on, checkpoints, features that were computed for
it, and ``history.json`` once it is finished.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagrank.data.files import read_json, reason, write_atomically
from tagrank.errors import InputError
from tagrank.model_folder import CONFIG, VOCABULARY, WEIGHTS

TRAINING, NEW = "training", "training.new"
SETTINGS = "settings.json"
HISTORY = "history.json"


def begin(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Path:
    """Make the folder of a new run, which contains only the run's settings.

    Args:
        out: the model's folder.
        settings: for ``settings.json``.
        overwrite: whether the new run may replace a model or an unfinished run.

    Raises:
        InputError: there is a model or an unfinished run and ``overwrite`` is false, something in ``out`` has the name
            of one of our files and is not ours, or the folder cannot be made.
    """
    try:
        # A run with nothing but its settings did not get far: nothing is lost with it.
        runs = [folder for folder in _runs(out) if os.listdir(folder) != [SETTINGS]]
        if not overwrite and (runs or (out / CONFIG).exists()):
            raise InputError(
                f"{out}: there is a model or an unfinished run already; go on with --resume, replace it with "
                "--overwrite, or choose another folder"
            )
        run = out / (NEW if out / TRAINING in runs else TRAINING)
        for folder in {run, out / NEW}:
            if folder.exists():
                shutil.rmtree(folder)
        run.mkdir(parents=True)
        write_atomically(run / SETTINGS, [json.dumps(settings, indent=2).encode(), b"\n"])
    except OSError as error:
        raise InputError(f"{out}: cannot be used: {reason(error)}") from error
    return run


def resume(out: Path, settings: Mapping[str, Any]) -> Path:
    """Find the folder of the run that began with these settings.

    Raises:
        InputError: no run did, or something in ``out`` has the name of one of our files and is not ours.
    """
    runs = _runs(out)
    if not runs:
        raise InputError(f"{out}: nothing to resume: {out / TRAINING / SETTINGS} is missing")
    for folder, before in runs.items():
        changed = [key for key in settings if before.get(key) != settings[key]]
        if not changed:
            return folder
    was = ", ".join(f"{key} {before.get(key)!r}, now {settings[key]!r}" for key in changed)
    raise InputError(f"{out}: cannot resume with other settings: was {was}")


def replace_model(out: Path, run: Path) -> None:
    """Let a finished run take the place of the run before it, and remove the old model's configuration.

    The configuration goes first, because a model's folder with a configuration is complete and from one run.
    """
    (out / CONFIG).unlink(missing_ok=True)
    if run.name == NEW:
        if (out / TRAINING).exists():
            shutil.rmtree(out / TRAINING)
        run.rename(out / TRAINING)


def has_run(folder: str | Path) -> bool:
    """Whether a model's folder has a run, finished or not, that can be resumed."""
    return any((Path(folder) / name / SETTINGS).is_file() for name in (NEW, TRAINING))


def is_finished(run: Path) -> bool:
    """Whether a run has come to its end: its history is written last."""
    return (run / HISTORY).is_file()


def write_history(run: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write the metrics of each epoch of a run, which is then finished."""
    write_atomically(run / HISTORY, [json.dumps(history, indent=1, allow_nan=False).encode(), b"\n"])


def read_history(folder: str | Path) -> list[dict[str, float]]:
    """The metrics of each epoch of the model in a folder; empty if the folder has no history.

    Raises:
        InputError: the history is damaged, or is not what training writes.
    """
    path = Path(folder) / TRAINING / HISTORY
    if not path.is_file():
        return []
    history: list[dict[str, float]] = read_json(path)
    if not isinstance(history, list) or not history or not all(map(_is_epoch, history)):
        raise InputError(f"{path}: expected the metrics of each epoch, got {history!r:.60}")
    return history


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
