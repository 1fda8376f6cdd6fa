"""Fixtures: run ``tagrank prepare``, and write small files in the formats of published data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tagrank.cli import app

Write = Callable[..., Path]


@pytest.fixture
def prepare() -> Callable[..., Result]:
    """A function that runs ``tagrank prepare`` with the given arguments."""

    def run(*arguments: Any) -> Result:
        result = CliRunner().invoke(app, ["prepare", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a file below ``tmp_path``. Without content, it writes a stand-in for a photograph."""

    def create(name: str, content: str | bytes = b"\xff\xd8\xff\xd9") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return create
