"""Devices by name: where networks run."""

import re

import torch

from tagrank.errors import InputError

EXPECTED = "auto, cpu, cuda, cuda:N or mps"


def find_device(name: str | torch.device) -> torch.device:
    """The device of this machine that a name stands for.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"``: a GPU if PyTorch sees one, else the CPU.

    Raises:
        InputError: there is no such device, or PyTorch sees none here.
    """
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _mps() else "cpu")
    if name == "cpu":
        return torch.device(name)
    if name == "mps":
        if not _mps():
            raise InputError("device: mps: PyTorch sees no GPU of a Mac here")
        return torch.device(name)
    if not (match := re.fullmatch(r"cuda(?::(\d{1,3}))?", name)):
        raise InputError(f"device: expected {EXPECTED}, got {name!r:.60}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        there = "no NVIDIA GPU" if count == 0 else "only cuda:0" if count == 1 else f"only cuda:0 to cuda:{count - 1}"
        raise InputError(f"device: {name}: PyTorch sees {there} here")
    return torch.device(name)


def in_words(device: torch.device) -> str:
    """A device for people: ``cuda:0 (NVIDIA H100)``."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _mps() -> bool:
    return torch.backends.mps.is_available()
