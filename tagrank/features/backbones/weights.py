"""Loads weights from a local file into a network; also understands the names in older torchvision files."""

import contextlib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagrank.data.files import first_line, reason, sha256
from tagrank.errors import InputError

# Auxiliary classifiers, which are used only in training.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# In torchvision's own files of DenseNet weights, layers have old names: norm.1 and conv.1 instead of norm1 and conv1.
_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def load_weights(name: str, network: nn.Module, path: Path, removed: str = "") -> str:
    """Load a state dict from a ``.safetensors`` file, or from any other file with ``torch.load(weights_only=True)``.

    Args:
        name: the name of the network, for error messages.
        network: a torchvision classifier, or another network.
        path: the file. Its tensors are converted to the dtypes of the network's parameters.
        removed: the prefix of the names of a layer that was removed from the network; the file may still have it.

    Returns:
        The file's name and the beginning of its SHA-256, which identify the weights.

    Raises:
        InputError: the file is missing, damaged, not a state dict, of another network, or has NaN or infinite values.
    """
    label = f"{path.name} sha256:{digest(name, [path])}"
    with reading(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path}: expected a state dict (names with tensors), got {_outline(state)}")
    _load_state(name, network, state, path, removed)
    check_finite(network, f"{path}: weights of {name}")
    return label


def digest(name: str, paths: Sequence[Path]) -> str:
    """The beginning of the SHA-256 of a file with weights; of several parts, that of their digests one after the other.

    Raises:
        InputError: a file cannot be read. The message says that weights of ``name`` were expected.
    """
    digests = []
    for path in paths:
        try:
            digests.append(sha256(path))
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}; expected a file with weights of {name}") from error
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return whole[:16]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Make an InputError of whatever goes wrong while weights are read, which raises many kinds of exceptions."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged, or has other things than weights ({first_line(error)})") from error


def _load_state(name: str, network: nn.Module, state: dict[str, Tensor], path: Path, removed: str) -> None:
    # The versions of the layers' state dicts, which tell layers how to read older files. Only .pth files have them.
    current: Any = network.state_dict()
    versions = getattr(state, "_metadata", {"": current._metadata[""]})
    state = OrderedDict((_DENSENET.sub(r"\1\2", key), value) for key, value in state.items())
    state._metadata = versions  # type: ignore[attr-defined]
    try:
        keys = network.load_state_dict(state, strict=False)
    except Exception as error:  # odd metadata of a .pth file raises many kinds of exceptions
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(f"{path}: not weights of {name}: {lines[min(1, len(lines) - 1)]:.200}") from error
    ignored = (removed, *_AUXILIARY) if removed else _AUXILIARY
    unexpected = [key for key in keys.unexpected_keys if not key.startswith(ignored)]
    for what, names in (("lacks", keys.missing_keys), ("also has", unexpected)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"{path}: not weights of {name}: the file {what} {', '.join(names[:3])}{more}")


def check_finite(network: nn.Module, what: str) -> None:
    """Raise an InputError that begins with ``what`` if a parameter or buffer has NaN or infinite elements."""
    for key, value in network.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{what}: expected finite values, got NaN or infinity in {key}")


def _outline(state: Any) -> str:
    return f"a dict with {', '.join(map(repr, list(state)[:4]))}" if isinstance(state, dict) else type(state).__name__
