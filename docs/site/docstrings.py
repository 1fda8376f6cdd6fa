"""Docstrings as the reference of the site shows them. They are written for Python's help, and griffe reads them."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """A griffe extension that brings docstrings into the form that griffe and Markdown expect."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return

        def link(role: re.Match[str]) -> str:
            try:
                target = obj.resolve(role[1])
            except griffe.NameResolutionError:
                target = role[1]
            return f'<autoref optional identifier="{target}"><code>{role[1].rpartition("tagrank.")[2]}</code></autoref>'

        # Roles are links if the site has what they name, and code otherwise.
        text = _ROLE.sub(link, obj.docstring.value)
        # A literal block of reStructuredText is an indented block of Markdown.
        text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            # Else the description up to its first colon would be taken for the type.
            text = re.sub(r"^Returns:\n +", lambda heading: f"{heading[0]}{obj.returns}: ", text, flags=re.MULTILINE)
        obj.docstring.value = text
