"""Roles of docstrings, such as :class:`tagrank.ContextLSTM`, as links of the site."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """A griffe extension: roles become links if the site has what they name, and code otherwise.

    Help in Python shows docstrings as they are, where roles read better than links of Markdown.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return

        def link(role: re.Match[str]) -> str:
            try:
                target = obj.resolve(role[1])
            except griffe.NameResolutionError:
                target = role[1]
            return f'<autoref optional identifier="{target}"><code>{role[1].rpartition("tagrank.")[2]}</code></autoref>'

        text = _ROLE.sub(link, obj.docstring.value)
        # A literal block of reStructuredText is an indented one of Markdown; griffe wants its heading in the plural.
        text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
        obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
