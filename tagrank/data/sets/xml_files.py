"""Annotation files in XML, which may come from anyone."""

from pathlib import Path
from typing import TYPE_CHECKING

from tagrank.data.files import reason
from tagrank.data.sets.records import SkipError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_xml(path: Path, root: str) -> "Element":
    """The root element of a file.

    Args:
        path: the file.
        root: the tag that the element has to have.

    Raises:
        SkipError: the file is missing, empty, damaged, defines entities, or has another root.
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
        raise SkipError(path, "XML with definitions of its own", error) from error
    except (ParseError, ValueError, LookupError) as error:  # the last two: encodings that expat does not know
        raise SkipError(path, "damaged XML", error) from error
    if element.tag != root:
        raise SkipError(path, "not an annotation", f"expected <{root}>, got <{element.tag}>")
    return element


def text_of(element: "Element", path: str) -> str:
    """The text at a path below an element, without white space around it; empty where there is none."""
    return (element.findtext(path) or "").strip()
