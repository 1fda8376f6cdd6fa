"""Annotation files in XML. The parser is safe for files from untrusted sources."""

from pathlib import Path
from typing import TYPE_CHECKING

from tagrank.data.files import reason
from tagrank.data.sets.records import SkipError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_xml(path: Path, root: str) -> "Element":
    """Parse an XML file and return its root element.

    Args:
        path: the file.
        root: the expected tag of the root element.

    Raises:
        SkipError: the file is missing, empty or damaged, has a document type definition, or has another root element.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        text = path.read_bytes()
    except OSError as error:
        raise SkipError(path, "annotation missing or unreadable", reason(error)) from error
    if not text.strip():
        raise SkipError(path, "annotation empty")
    try:
        element: Element = fromstring(text, forbid_dtd=True)
    except DefusedXmlException as error:
        raise SkipError(path, "XML with a document type definition", error) from error
    except (ParseError, ValueError, LookupError) as error:  # ValueError and LookupError: encodings unknown to expat
        raise SkipError(path, "damaged XML", error) from error
    if element.tag != root:
        raise SkipError(path, "not an annotation", f"expected <{root}>, got <{element.tag}>")
    return element


def text_of(element: "Element", path: str) -> str:
    """The text of the element at ``path`` below ``element``, without white space around it; empty if there is none."""
    return (element.findtext(path) or "").strip()
