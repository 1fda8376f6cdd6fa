"""Checkpoints of a run: written so that none is ever half, and read only if they are sound."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.training.run_folder import is_history, write_checkpoint

FIELDS: Mapping[str, type] = {
    "state_dict": dict,
    "global_step": int,
    "optimizer_states": list,
    "lr_schedulers": list,
    "history": list,
}
"""What a checkpoint has, and of what type. Those of earlier versions, which Lightning wrote, have more."""


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Replace a checkpoint. Raises an OSError if the file cannot be written; the one before is then unchanged."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    write_checkpoint(path, content.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, on the CPU. Nothing but tensors and plain values is unpickled.

    Raises:
        InputError: the file is missing, damaged, or something else than a checkpoint of a training run.
    """
    try:
        # torch.load does not compare the checksums of the archive's members.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"{broken} has another checksum than when it was written")
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: {reason(error)}; start anew with --overwrite") from error
    except Exception as error:  # zipfile, pickle and torch raise many kinds of exceptions on a damaged file
        raise InputError(f"{path}: not a checkpoint, or a damaged one; start anew with --overwrite") from error
    fault = _fault(state)
    if fault:
        raise InputError(f"{path}: not a checkpoint of a training run: {fault}; start anew with --overwrite")
    return dict(state)


def _fault(state: Any) -> str | None:
    """What distinguishes the content of a file from a checkpoint's."""
    if not isinstance(state, dict):
        return f"expected a dict, got {type(state).__name__}"
    for name, kind in FIELDS.items():
        if not isinstance(state.get(name), kind):
            return f"{name}: expected {kind.__name__}, got {type(state.get(name)).__name__}"
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state["state_dict"].items()):
        return "state_dict: expected tensors by name"
    if not is_history(state["history"]):
        return f"history: expected the metrics of each epoch, got {state['history']!r:.60}"
    return None
