"""The metadata of a photograph or a sidecar in memory, read and written with the library exiv2.

exiv2 keeps properties that it does not know. The XMP part of it is not safe for threads: all of this runs in one.

tagrank's own properties are in a namespace of its own, whose name is a UUID: it claims no host. They are::

    tagrank:Tags        Seq     the tags, the most important first
    tagrank:Scores      Seq     the score of each, with four decimals
    tagrank:Model       Text    a digest of the model
    tagrank:Unlike      Text    how unlike the training photographs the photograph is
    tagrank:AddedX      Bag     which keywords tagrank added to list X, for each name X of ``List``
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.metadata.keyword_lists import Keywords, List, Ranked, Record, Words

NAMESPACE = "urn:uuid:7c3a52d9-6a0e-4f0b-9f5e-0d2b8f4c61a7#"
PREFIX = "tagrank"

_PROPERTIES = {
    List.subject: "Xmp.dc.subject",
    List.hierarchical: "Xmp.lr.hierarchicalSubject",
    List.tags_list: "Xmp.digiKam.TagsList",
}
_KEYWORDS, _CHARSET, _UTF8 = "Iptc.Application2.Keywords", "Iptc.Envelope.CharacterSet", "\x1b%G"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@cache
def library() -> Any:
    """The module ``exiv2``, set up.

    Raises:
        InputError: it is not installed.
    """
    try:
        import exiv2
    except ImportError as error:
        raise InputError(f"writing tags into photographs needs exiv2: pip install 'tagrank[xmp]' ({error})") from error
    exiv2.LogMsg.setLevel(exiv2.LogMsg.Level.mute)
    exiv2.XmpProperties.registerNs(NAMESPACE, PREFIX)
    return exiv2


class ImageMetadata:
    """The keywords of a photograph's file, or of a sidecar.

    Args:
        path: of the file, for messages.
        data: the content of the file; its path, if it is only read; None for a new sidecar.

    Attributes:
        kind: ``JPEG``, ``PNG``, ``WebP``, ``TIFF``, ``XMP`` or another name; exiv2 writes more kinds than these.

    Raises:
        InputError: exiv2 does not know the file's format, or the file or its XMP is damaged.
    """

    def __init__(self, path: Path, data: bytes | Path | None = None) -> None:
        exiv2 = library()
        self._path = path
        with _faults(path):
            if data is None:
                self._image = exiv2.ImageFactory.create(exiv2.ImageType.xmp)
            else:
                self._image = exiv2.ImageFactory.open(data if isinstance(data, bytes) else str(data))
                self._image.readMetadata()
            self._xmp, self._iptc = self._image.xmpData(), self._image.iptcData()
            kinds = {exiv2.ImageType.jpeg: "JPEG", exiv2.ImageType.png: "PNG", exiv2.ImageType.webp: "WebP"}
            kinds |= {exiv2.ImageType.tiff: "TIFF", exiv2.ImageType.xmp: "XMP"}
            kind = self._image.imageType()
            self.kind = kinds.get(kind, self._image.mimeType())
            damaged = self._xmp.empty() and _says_something(self._image.xmpPacket())
        if damaged:
            raise InputError(f"{path}: its XMP is damaged; it is left as it is")

    def keywords(self) -> Keywords:
        """The lists of keywords; IPTC's only of a JPEG or TIFF file that can hold them in Unicode."""
        lists = {name: self._array(key) for name, key in _PROPERTIES.items()}
        if self.kind in ("JPEG", "TIFF") and (words := self._iptc_words()) is not None:
            lists[List.iptc] = words
        return lists

    def record(self) -> Record | None:
        """What tagrank noted when it wrote tags; None if it never did."""
        tags = self._array(_own("Tags"))
        added = {name: self._array(_own(f"Added{name.value}")) for name in List}
        if not tags and not any(added.values()):
            return None
        try:
            scores = tuple(map(float, self._array(_own("Scores"))))
            unlike = next(map(float, self._array(_own("Unlike"))), None)
        except ValueError:  # somebody else wrote there: they are written again
            scores, unlike = (), None
        return Record(Ranked(tags, scores, next(iter(self._array(_own("Model"))), ""), unlike), added)

    def set(self, lists: Keywords, record: Record | None) -> None:
        """Change the lists and the record; None takes it out."""
        for name, key in _PROPERTIES.items():
            if lists[name] != self._array(key):
                self._set_array(key, lists[name], ordered=name is List.tags_list)
        if List.iptc in lists and lists[List.iptc] != self._iptc_words():
            self._set_iptc(lists[List.iptc])
        ranked = record.ranked if record else Ranked(())
        self._set_array(_own("Tags"), ranked.tags, ordered=True)
        self._set_array(_own("Scores"), [f"{score:.4f}" for score in ranked.scores], ordered=True)
        self._set_text(_own("Model"), ranked.model)
        self._set_text(_own("Unlike"), "" if ranked.unlike is None else f"{ranked.unlike:.4f}")
        for name in List:
            self._set_array(_own(f"Added{name.value}"), record.added.get(name, ()) if record else ())

    @property
    def has_xmp(self) -> bool:
        """Whether there is any XMP."""
        return not self._xmp.empty()

    def write(self) -> bytes:
        """The content of the file with what was set.

        Raises:
            InputError: exiv2 cannot write this file.
        """
        with _faults(self._path):
            if self._xmp.empty():
                self._image.clearXmpData()  # the packet too, which exiv2 would otherwise leave in some formats
            self._image.writeMetadata()
            io = self._image.io()
            io.open()
            return bytes(io.mmap())

    def _find(self, key: str) -> Any:
        exiv2 = library()
        found = self._xmp.findKey(exiv2.XmpKey(key))
        return None if found == self._xmp.end() else found

    def _array(self, key: str) -> Words:
        """The words of a list in XMP, or the one word of a text."""
        if (found := self._find(key)) is None:
            return ()
        value = found.value()
        if isinstance(value, library().XmpArrayValue):
            return tuple(value[number] for number in range(value.count()))
        return (value.toString(),)

    def _set_array(self, key: str, words: Sequence[str], *, ordered: bool = False) -> None:
        if tuple(words) == self._array(key):
            return
        exiv2 = library()
        if (found := self._find(key)) is not None:
            self._xmp.erase(found)
        if words:
            value = exiv2.XmpArrayValue(exiv2.TypeId.xmpSeq if ordered else exiv2.TypeId.xmpBag)
            for word in words:
                value.read(word)
            self._xmp.add(exiv2.XmpKey(key), value)

    def _set_text(self, key: str, text: str) -> None:
        if (text,) == self._array(key):
            return
        exiv2 = library()
        if (found := self._find(key)) is not None:
            self._xmp.erase(found)
        if text:
            self._xmp.add(exiv2.XmpKey(key), exiv2.XmpTextValue(text))

    def _iptc_words(self) -> Words | None:
        """The IPTC keywords; None if there is text in another encoding than UTF-8, which ours would make unreadable."""
        texts = [(datum.key(), bytes(datum.value().data())) for datum in self._iptc if datum.typeName() == "String"]
        # Without a mark the encoding is anybody's guess, unless it is ASCII.
        if not self._is_utf8() and not all(text.isascii() for key, text in texts if key != _CHARSET):
            return None
        try:
            return tuple(text.decode() for key, text in texts if key == _KEYWORDS)
        except UnicodeDecodeError:
            return None

    def _is_utf8(self) -> bool:
        return any(datum.key() == _CHARSET and datum.toString() == _UTF8 for datum in self._iptc)

    def _set_iptc(self, words: Words) -> None:
        exiv2 = library()
        key = exiv2.IptcKey(_KEYWORDS)
        while (found := self._iptc.findKey(key)) != self._iptc.end():
            self._iptc.erase(found)
        if any(not word.isascii() for word in words) and not self._is_utf8():
            self._iptc[_CHARSET] = _UTF8
        for word in words:
            self._iptc.add(key, exiv2.StringValue(word))
        if {datum.key() for datum in self._iptc} == {_CHARSET}:
            self._iptc.clear()


def _own(name: str) -> str:
    return f"Xmp.{PREFIX}.{name}"


def _says_something(packet: str) -> bool:
    """Whether XMP that exiv2 found nothing in is damaged, and not empty."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    if not packet.strip("\0 \r\n\t"):
        return False
    try:
        root: Element = fromstring(packet.strip("\0"))
    except (ParseError, DefusedXmlException, ValueError):
        return True
    return any(len(node) or node.attrib.keys() - {f"{_RDF}about"} for node in root.iter(f"{_RDF}Description"))


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except library().Exiv2Error as error:
        raise InputError(f"{path}: {_message(error)}") from error


def _message(error: Exception) -> str:
    text = str(error.args[-1]) if error.args else ""
    return f"exiv2: {text[:1].lower()}{text[1:]:.200}" if text else first_line(error)
