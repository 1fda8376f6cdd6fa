"""What of an image file must stay as it is when its keywords change: all but XMP and IPTC.

exiv2 changes a little more when it writes: Exif data of PNG and WebP in another byte order, which may cost what cameras
note there; JPEG's comments in another place. So only the XMP and IPTC that it writes are taken, where a file has parts
that can be taken: not of TIFF. Every file is compared before it replaces the old one: no fault of a library, and no odd
file, costs a photograph.
"""

import hashlib
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import takewhile

from tagrank.data.files import first_line
from tagrank.errors import InputError

KINDS = ("JPEG", "PNG", "WebP", "TIFF")
"""The kinds of files whose keywords may change. exiv2 writes more, but what it must keep of them is not known here."""

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_IPTC = b"Photoshop 3.0\0"
_PNG_XMP = b"XML:com.adobe.xmp\0"
_WEBP_XMP = 4


def checked(kind: str, old: bytes, written: bytes, has_xmp: bool) -> bytes:
    """A file with the XMP and IPTC that exiv2 wrote, and all else as before.

    Args:
        kind: one of :data:`KINDS`.
        old: the file as it is.
        written: the file as exiv2 would have it.
        has_xmp: whether it has XMP; exiv2 leaves the old XMP in a WebP file that shall have none.

    Raises:
        InputError: the file is damaged, or exiv2 would change more. The message is without the path.
    """
    try:
        match kind:
            case "JPEG":
                new = _new_jpeg(old, written)
            case "PNG":
                new = _new_png(old, written)
            case "WebP":
                new = _new_webp(old, written, has_xmp)
            case _:
                new = written
        same = rest(kind, old) == rest(kind, new)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions
        raise InputError(
            f"a {kind} file that cannot be checked ({first_line(error)}); it is left as it is; use --write sidecar"
        ) from error
    if not same:
        raise InputError("exiv2 would change more of this file than keywords; it is left as it is; use --write sidecar")
    return new


def rest(kind: str, data: bytes) -> str:
    """A digest of all of a file but its XMP and IPTC.

    Of a TIFF file, whose parts have no order, it is the pixels of all of its pages and its tags.

    Raises:
        ValueError: the file is damaged; other exceptions are possible too.
    """
    digest = hashlib.sha256()
    for part in {"JPEG": _jpeg, "PNG": _png, "WebP": _webp, "TIFF": _tiff}[kind](data):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """The segments (ITU-T T.81, B.1), and everything from the first scan to the end of the file as one more."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker where one is expected")
        marker = data[at + 1]
        if marker in (0xDA, 0xD9):
            yield data[at:]
            return
        alone = marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD7  # 0xFF: this byte fills, the next begins a marker
        size = (marker != 0xFF) + 1 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at : at + size]
        at += size


def _is_jpeg_metadata(segment: bytes) -> bool:
    return segment.startswith((b"\xff\xe1", b"\xff\xed")) and segment[4:].startswith((_XMP, _IPTC))


def _jpeg(data: bytes) -> Iterator[bytes]:
    """Behind a list of further pictures (CIPA DC-007), which has their distances, every segment counts."""
    pictures = False
    for segment in _jpeg_segments(data):
        pictures = pictures or (segment.startswith(b"\xff\xe2") and segment[4:8] == b"MPF\0")
        if pictures or not _is_jpeg_metadata(segment):
            yield segment


def _new_jpeg(old: bytes, written: bytes) -> bytes:
    """An old file with the metadata of the one that was written, behind JFIF's and Exif's segments."""
    others = [segment for segment in _jpeg_segments(old) if not _is_jpeg_metadata(segment)]
    behind = sum(1 for _ in takewhile(lambda segment: segment.startswith((b"\xff\xe0", b"\xff\xe1")), others))
    metadata = filter(_is_jpeg_metadata, _jpeg_segments(written))
    return b"".join([old[:2], *others[:behind], *metadata, *others[behind:]])


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks with their sizes and checksums (ISO/IEC 15948, 5.3), and what is behind the last one."""
    at = 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunk = data[at:end]
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ValueError(f"wrong checksum of chunk {chunk[4:8]!r}")
        yield chunk
        at = end
        if chunk[4:8] == b"IEND":
            yield data[at:]
            return
    raise ValueError("no end")


def _is_png_xmp(chunk: bytes) -> bool:
    return chunk[4:8] == b"iTXt" and chunk[8:].startswith(_PNG_XMP)


def _png(data: bytes) -> Iterator[bytes]:
    return (chunk for chunk in _png_chunks(data) if not _is_png_xmp(chunk))


def _new_png(old: bytes, written: bytes) -> bytes:
    """An old file with the XMP of the one that was written, behind its header."""
    header, *others = _png(old)
    return b"".join([old[:8], header, *filter(_is_png_xmp, _png_chunks(written)), *others])


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks of the RIFF container, with what fills them to an even size."""
    at = 12
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if end > len(data):
            raise ValueError("a chunk is longer than the file")
        end += end % 2
        yield data[at:end].ljust(end - at, b"\0")
        at = end


def _webp(data: bytes) -> Iterator[bytes]:
    """``VP8X``, which says which other chunks are there, is left out."""
    return (chunk for chunk in _webp_chunks(data) if chunk[:4] not in (b"XMP ", b"VP8X"))


def _new_webp(old: bytes, written: bytes, has_xmp: bool) -> bytes:
    """An old file with the XMP of the one that was written; its header says whether it has any."""
    extended, xmp = ([chunk for chunk in _webp_chunks(written) if chunk[:4] == name] for name in (b"VP8X", b"XMP "))
    if not has_xmp:
        extended = [chunk[:8] + bytes([chunk[8] & ~_WEBP_XMP]) + chunk[9:] for chunk in extended]
    body = b"".join([b"WEBP", *extended, *_webp(old), *(xmp if has_xmp else [])])
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _tiff(data: bytes) -> Iterator[bytes]:
    from PIL import ExifTags, Image, ImageSequence

    # What exiv2 writes, or moves to another place.
    moved = {273, 324, 330, 700, 33723, 34377, 34665, 34853}
    with Image.open(BytesIO(data), formats=("TIFF",)) as image:
        for page in ImageSequence.Iterator(image):
            yield repr((page.mode, page.size)).encode()
            yield page.tobytes()
        image.seek(0)
        exif = image.getexif()
        yield repr(sorted((tag, exif[tag]) for tag in exif if tag not in moved)).encode()
        for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            yield repr(sorted(exif.get_ifd(part).items(), key=lambda item: item[0])).encode()
