"""What this machine and installation can run, and why they cannot run the rest."""

import platform
from importlib import metadata
from typing import Any

import torch

from tagrank.recurrence.backends import unavailable


def env() -> dict[str, Any]:
    """Describe the installation, for a bug report or a result file.

    Returns:
        ``versions`` of tagrank, Python, torch, triton and torchvision (``None`` if it is not installed), ``cpu`` and
        ``threads``, ``gpus`` with name and compute capability, and ``backends``: for each the reason why it cannot run,
        and what to install if that helps, or ``None`` if it can.
    """
    import tagrank

    gpus = [
        {"name": torch.cuda.get_device_name(i), "capability": ".".join(map(str, torch.cuda.get_device_capability(i)))}
        for i in range(torch.cuda.device_count())
    ]
    return {
        "versions": {
            "tagrank": tagrank.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "torchvision": _version("torchvision"),
        },
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "backends": unavailable(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """The processor's name and widest vector instructions, as PyTorch sees them."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
