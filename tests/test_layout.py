"""The folders are the architecture: imports point downwards, and each file has a name of its own."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]

#: The rooms of tagrank/ from the ground up. A room imports only from rooms below its floor, and not from neighbours.
FLOORS = (
    ("errors", "progress", "allocator", "cores", "kernels"),
    ("options", "model_files", "recurrence", "data"),
    ("nn", "features", "metrics", "model_card"),
    ("ranker", "model_hub"),
    ("decode", "model_folder", "metadata"),
    ("annotator",),
    ("training", "retrieval", "exporting", "engines"),
    ("evaluation",),
    ("demo", "app"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """The files of the package by their dotted names; a folder goes by the name of its package."""
    found = {}
    for name, folder in (("tagrank", ROOT / "tagrank"), ("tagrank.kernels", ROOT / "kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([name, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules of tagrank that a file imports anywhere: at its top, in functions, for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if (target := name if name in MODULES else node.module) in MODULES:
                    yield str(target)


def room(module: str) -> str:
    """``features`` for ``tagrank.features.store``, ``tagrank`` for the package itself."""
    return module.split(".")[1] if "." in module else module


IMPORTS = {name: sorted(set(imports(path))) for name, path in MODULES.items()}


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in MODULES} - {"tagrank"} == FLOOR.keys()


@pytest.mark.parametrize("name", [name for name in MODULES if name != "tagrank"])
def test_imports_point_downwards(name: str) -> None:
    for target in IMPORTS[name]:
        # The package itself only holds the version; it loads its public names when they are first used.
        if room(target) not in ("tagrank", room(name)):
            assert FLOOR[room(target)] < FLOOR[room(name)], f"{name} imports {target}"


def test_no_circles_of_imports() -> None:
    """Not within a room either. The package itself is left out: it names the rooms whose names it hands on."""
    graph = {name: targets for name, targets in IMPORTS.items() if name != "tagrank"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_a_circle_would_be_found() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter(IMPORTS | {"tagrank.errors": ["tagrank.cli.app"]}).prepare()


def test_file_names_are_unique() -> None:
    """So that a name in a traceback, a search or a comment leads to one file."""
    names = [path.name for path in MODULES.values() if path.stem not in ("__init__", "__main__")]
    assert {name for name in names if names.count(name) > 1} == set()


def test_file_names_shadow_no_package() -> None:
    others = (sys.stdlib_module_names | packages_distributions().keys()) - {"tagrank"}
    assert {path.stem for path in MODULES.values()} & others == set()


def test_all_packages_are_installed() -> None:
    """``pip install`` takes the folders that pyproject.toml names, and no others."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == packages
