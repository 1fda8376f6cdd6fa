"""The C++ of the operators compiles beside the torch that is here: ``make test-oldest`` has the oldest one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])


@pytest.mark.exhaustive
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_operators_compile_beside_this_torch() -> None:
    include = Path(torch.__file__).parent / "include"
    # What setup.py defines.
    options = ["-std=c++17", "-fsyntax-only", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include)]
    sources = [*sorted((ROOT / "csrc" / "operators").glob("*.cpp")), ROOT / "csrc" / "bindings.cpp"]
    assert len(sources) > 5
    done = [subprocess.run([str(COMPILER), *options, source], capture_output=True, text=True) for source in sources]
    assert not [one.stderr[:500] for one in done if one.returncode]
