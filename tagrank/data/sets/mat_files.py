"""MATLAB files, read in a process of its own: scipy's parser in C dies of some damaged files, or fills the memory."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tagrank.data.sets import mat_reader
from tagrank.errors import InputError

MEMORY = 1 << 30
"""How many bytes of memory the process may have."""
SECONDS = 60
"""How long the process may run."""


def load_mat(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a MATLAB file, as ``scipy.io.loadmat`` returns them. No code in the file is run.

    Args:
        path: the file, of at most MATLAB 7.
        names: the variables to read; None for all.

    Raises:
        InputError: the file cannot be read, is damaged, or needs more memory or time than the process may have.
    """
    arguments = json.dumps([str(path), names, MEMORY, SECONDS, sys.path])
    try:
        done = subprocess.run(
            # -I: nothing is imported from the current folder.
            [sys.executable, "-I", mat_reader.__file__, arguments],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # a thread reserves memory
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path}: damaged, or too large: it cannot be read in {SECONDS} s") from error
    if done.returncode:
        how = signal.strsignal(-done.returncode) if done.returncode < 0 else _last_line(done.stderr)
        raise InputError(f"{path}: not a MATLAB file, or damaged (its reader ended: {how})")
    result = pickle.loads(done.stdout)
    if isinstance(result, dict):
        return {name: value for name, value in result.items() if not name.startswith("__")}
    kind, message = result
    if kind == "version":
        raise InputError(f"{path}: MATLAB 7.3 files cannot be read; save it with '-v7'")
    if kind == "unread":
        raise InputError(f"{path}: {message.lower()}")
    raise InputError(f"{path}: not a MATLAB file, or damaged ({message})")


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:200]
