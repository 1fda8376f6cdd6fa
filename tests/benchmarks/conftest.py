"""The scripts of benchmarks/ as modules: what needs no process of its own does not wait for one to import torch."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """``load("gpu")`` imports ``benchmarks.gpu``; only for this is the repository's root on the path."""

    def load(name: str) -> ModuleType:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path, str(ROOT)])
            return importlib.import_module(f"benchmarks.{name}")

    return load


@pytest.fixture
def refuses(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What ``python -m benchmarks.<name>`` writes to stderr when its arguments are wrong; nothing goes to stdout."""

    def refuses(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as end:
            load(name).main()
        assert end.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return refuses
