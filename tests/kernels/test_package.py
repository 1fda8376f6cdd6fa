"""``tagrank.kernels`` can be imported by no other name, and ``import tagrank`` imports neither Triton nor torch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tagrank.kernels


def test_refuses_another_name() -> None:
    path = Path(tagrank.kernels.__file__)
    spec = importlib.util.spec_from_file_location("kernels", path)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"tagrank\.kernels and was imported as 'kernels'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_imports_neither_torch_nor_the_rest_of_tagrank() -> None:
    for path in Path(tagrank.kernels.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] != "torch", f"{path.name}: {line}"
                assert not words[1].startswith("tagrank") or words[1].startswith("tagrank.kernels"), line


def test_importing_tagrank_needs_only_torch() -> None:
    code = """
import sys, tagrank
assert "torch" not in sys.modules, "tagrank --help must not wait for torch"
public = [getattr(tagrank, name) for name in tagrank.__all__]
assert "torch" in sys.modules and len(public) == 8
loaded = {"triton", "torchvision", "scipy", "PIL", "rich", "typer"} & sys.modules.keys()
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_layer_without_triton_and_torchvision() -> None:
    """As beside a torch for CPUs, whose wheels bring no Triton."""
    code = """
import sys
sys.modules["triton"] = sys.modules["torchvision"] = None
import torch, tagrank
torch.version.cuda = None
layer = tagrank.ContextLSTM(2, 3)
layer(torch.ones(4, 2), steps=5)[0].sum().backward()
assert layer.weight_hh_l0.grad.abs().sum() > 0
print(tagrank.env()["backends"]["triton"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("this PyTorch is built without CUDA")
