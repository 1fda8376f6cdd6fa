"""What the site needs beyond MkDocs: pages from outside docs/, formulas as MathML, and the notebook, executed."""

import html
import os
import re
from pathlib import Path
from typing import Any

import jupytext
from math_core import LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
#: Pages that are outside docs/, by their places on the site. The README is for code hosts; index.md stands for it.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
#: The source of the page notebook.md. Other pages link to it, so that their links lead somewhere on code hosts, too.
NOTEBOOK = "notebook.py"

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, place in PAGES.items():
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    for place, content in run_notebook(Path(config.docs_dir) / NOTEBOOK).items():
        files.append(File.generated(config, place, content=content))
    return files


def run_notebook(path: Path) -> dict[str, str | bytes]:
    """Run a notebook from the first cell to the last: its page, the pictures of its outputs, and the notebook itself.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook: Any = jupytext.read(path)
    # By sockets of files: those of the network would be open to others on the machine, and the kernel warns of it.
    sockets = Config({"ConnectionFileMixin": {"transport": "ipc"}})
    NotebookClient(notebook, config=sockets, kernel_name="python3", timeout=900, coalesce_streams=True).execute()
    name, pictures = f"{path.stem}.ipynb", f"{path.stem}_files"
    page, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"unique_key": path.stem, "output_files_dir": pictures}
    )
    page += f"\n\nTo run it yourself: [the notebook]({name}) with these outputs, or [its source]({path.name}).\n"
    return {f"{path.stem}.md": page, name: jupytext.writes(notebook, fmt="ipynb"), **resources["outputs"]}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the same things as on a code host, wherever these are in the repository."""
    if page.file.src_uri == "changelog.md":
        page.meta["search"] = {"boost": 0.5}  # what a name is comes before what happened to it
    origin = Path(page.file.abs_src_path or Path(config.docs_dir, page.file.src_uri))

    def on_site(link: re.Match[str]) -> str:
        path = (origin.parent / link[1]).resolve()
        if not path.is_file():
            return link[1]
        if path.is_relative_to(config.docs_dir):
            place = path.relative_to(config.docs_dir).as_posix()
            if place == NOTEBOOK and page.file.src_uri != "notebook.md":
                place = "notebook.md"
        else:
            name = path.relative_to(ROOT).as_posix()
            place = PAGES.get(name, f"files/{name}")
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(path)))
        return os.path.relpath(place, Path(page.file.src_uri).parent)

    return _LINK.sub(on_site, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without any script."""
    convert = LatexToMathML(annotation=True).convert_with_local_state

    def mathml(formula: re.Match[str]) -> str:
        return convert(html.unescape(formula[2]), displaystyle=formula[1] == "div")

    return _FORMULA.sub(mathml, content)
