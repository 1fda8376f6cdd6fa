"""Checkpoints of a run: written so that none is ever half, and read only if they are sound."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.training.run_folder import is_history, write_checkpoint

FIELDS: Mapping[str, type] = {
    "state_dict": dict,
    "epoch": int,
    "global_step": int,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "history": list,
}
"""What a checkpoint has, and of what type."""


class CheckpointFiles(CheckpointIO):
    """How Lightning writes and reads checkpoints.

    Its own way writes to the folder for temporary files. From there to another file system a file is copied, so that a
    process that is killed meanwhile, or a full disk, would leave half a checkpoint in the place of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace a checkpoint. Raises an OSError if the file cannot be written; the one before is then unchanged."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_checkpoint(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """:func:`read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Lightning removes a checkpoint that has another name than its successor. Ours have the same."""
        raise NotImplementedError


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
