"""Loads the C++ library, or says why it cannot."""

from pathlib import Path

import torch

LIBRARY = Path(__file__).parent.parent / "_C.so"
_REMEDY = "with torch and a C++ compiler installed, pip install --no-build-isolation . in tagrank's sources builds it"


def load() -> str | None:
    """Register the library's operators: ``torch.ops.tagrank.layer_forward``, ``layer_backward``, ``cpu_capability``.

    Returns:
        ``None``, or, if they are missing, one sentence that says why and what helps.
    """
    if not LIBRARY.exists():
        return f"tagrank was installed without its C++ library {LIBRARY.name}; {_REMEDY}"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"torch {torch.__version__} cannot load {LIBRARY} ({error}); {_REMEDY}"
    return None


def misset() -> str | None:
    """What is wrong with the variable ``TAGRANK_CPU_CAPABILITY``, or ``None``. The library must be loaded."""
    try:
        torch.ops.tagrank.cpu_capability()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def without_cuda() -> str | None:
    """Why the loaded library has no kernels for NVIDIA GPUs, or ``None`` if it has."""
    if torch.ops.tagrank.has_clusters():
        return None
    return (
        "tagrank's C++ library was built without CUDA; with nvcc (pip install 'tagrank[cuda-build]' brings it), "
        "TAGRANK_BUILD_CUDA=1 pip install --no-build-isolation . in tagrank's sources builds it with CUDA"
    )
