"""The pages of docs/ and those beside it, as a code host shows them: their links lead somewhere, their code runs."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.py"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), NOTEBOOK]


def prose(page: Path) -> str:
    """The Markdown of a page without its code; of a notebook, that of its cells of text."""
    text = page.read_text(encoding="utf-8")
    if page == NOTEBOOK:
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)*)", text, re.MULTILINE)
        return "\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells)
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def faults(page: Path) -> Iterator[str]:
    """The links of a page that lead nowhere in this repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(faults(page)) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n\n[1](#a-b-c) [2](#a-b) [3](other.md) [4](other.md#there) [5](none.md) [6](https://x.y#z)\n\n"
        "```python\nx[0](gone)\n```\n\n## There\n\n## There\n\n[7](#there-1) [8](#there-2)\n"
    )
    (tmp_path / "other.md").write_text("# Here\n")
    assert list(faults(page)) == ["#a-b", "other.md#there", "none.md", "#there-2"]


def test_most_links_are_seen() -> None:
    links = {page.name: len(re.findall(r"\]\(", prose(page))) for page in PAGES}
    assert links["README.md"] > 10
    assert links["index.md"] > 10
    assert links["notebook.py"] > 3


def test_the_formulas_of_the_backward_pass_give_the_layers_gradients() -> None:
    """The code of docs/mathematics.md compares them itself."""
    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(code, names)
    gradients = names["gradients"]
    assert isinstance(gradients, dict)
    assert gradients.keys() == {"context", "weight_ih", "weight_hh", "bias"}
    assert all(float(own.norm()) > 0 for own, _ in gradients.values())


def test_the_names_of_the_mathematics_are_those_of_the_code() -> None:
    """A path or a function that the page names is there."""
    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:tagrank|csrc|kernels)/[\w/.]+)`", page))
    assert len(paths) >= 9
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    for name, path in re.findall(r"`(\w+)` (?:in|\() ?`((?:tagrank|csrc)/[\w/.]+)`", page):
        assert re.search(rf"\b{name}\(", (ROOT / path).read_text(encoding="utf-8")), (name, path)
