"""``make docs``: the site that MkDocs builds, with all warnings as errors, and what a browser would load of it."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
#: What a browser loads of its own accord.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}

# Each worker waits for the one that builds the site.
pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]


class Page(HTMLParser):
    """What a page loads, where its links lead, its anchors, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.anchors |= {name for name in (given.get("id"), given.get("name")) if name}
        if (address := given.get(LOADED.get(tag, ""))) and given.get("rel") != "canonical":
            self.loaded.append(address)
        if tag == "a" and (address := given.get("href")):
            self.links.append(address)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(once: Any) -> Path:
    """The site, built once."""

    def build(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
            cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr

    folder: Path = once("site", build)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there(pages: dict[str, Page]) -> None:
    sources = {p.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert pages.keys() == sources | {"notebook.html", "contributing.html", "changelog.html", "404.html"}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    addresses = {(name, address) for name, page in pages.items() for address in page.loaded}
    assert len(addresses) > len(pages), "each page has at least a style sheet"
    assert [a for a in addresses if urlsplit(a[1]).scheme not in ("", "data") or a[1].startswith("//")] == []
    for path in site.rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        assert re.findall(r"@import|url\(['\"]?(?:https?:)?//", style) == [], path
    # The theme fetches this library where a page has a diagram.
    assert not any("mermaid" in (site / name).read_text(encoding="utf-8").split("<article")[-1] for name in pages)


def test_links_and_anchors(site: Path, pages: dict[str, Page]) -> None:
    """In what MkDocs does not look at, too: links that docstrings, the notebook and the theme made."""
    faults = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or name == "404.html":
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            found = pages.get(os.path.relpath(target, site))
            if not target.is_file() or (parts.fragment and found and unquote(parts.fragment) not in found.anchors):
                faults.append((name, link))
    assert faults == []


def test_formulas_are_mathml(pages: dict[str, Page]) -> None:
    tags = pages["mathematics.html"].tags
    assert tags.count("math") > 50
    assert "merror" not in tags
    for name, page in pages.items():
        assert not re.search(r"\\[(\[]\S", page.text.replace("\\\\", "")) or "math" not in page.tags, name


def test_the_reference(pages: dict[str, Page]) -> None:
    """Docstrings are rendered: no markup of another kind is left, and the public names are there."""
    import tagrank

    reference = {name: page for name, page in pages.items() if name.startswith("api/")}
    assert {f"tagrank.{name}" for name in tagrank.__all__} <= set().union(*(p.anchors for p in reference.values()))
    for name, page in reference.items():
        assert re.findall(r":\w+:`|``|^\s*>>>(?!.)", page.text, re.MULTILINE) == [], name
        assert "blockquote" not in page.tags, f"{name}: an example that is no code"


def test_the_notebook_was_run(site: Path, pages: dict[str, Page]) -> None:
    notebook = json.loads((site / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
    text = pages["notebook.html"].text
    model, baseline = (float(re.search(rf"{name}: NDCG@5 ([\d.]+)", text)[1]) for name in ("model", "baseline"))  # type: ignore[index]
    assert baseline < 0.5 < 0.75 < model < 1
    assert pages["notebook.html"].tags.count("figure") == 3 + 4 + 4
    assert "the end" in text


def test_models_are_included(pages: dict[str, Page]) -> None:
    """The page has the code of docs/models/, not the command that includes it."""
    text = pages["models.html"].text
    assert not re.search(r"--8\s*<", text)
    for line in ("self.lstm = ContextLSTM(context_size=", "self.first = nn.LSTMCell(", "lengths=lengths)"):
        assert line in text
