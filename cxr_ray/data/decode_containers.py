"""What lies around the pixels in PNG, GIF and TIFF files, and how DICOM starts.

Pillow reads every text, profile and EXIF entry of a file, one by one in Python, and a file of a few megabytes can
make that take minutes or gigabytes. It gets files without them; the one entry that concerns the pixels, the
orientation, is read here.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from cxr_ray.errors import DecodeError

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS")
_MAX_CHUNKS = 200_000

_GIF_BLOCK_IMAGE, _GIF_BLOCK_EXTENSION, _GIF_BLOCK_END = 0x2C, 0x21, 0x3B
_GIF_GRAPHIC_CONTROL = 0xF9

_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TIFF_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_TIFF_TEXT_TYPES = (1, 2, 7)
_MAX_ENTRIES = 4_096
_MAX_VALUES = 200_000  # in one entry: strips, tiles
_ORIENTATION = 0x0112
_SUB_DIRECTORIES = frozenset({0x8769, 0x8825, 0xA005})  # EXIF, GPS, interoperability
_PIXEL_TAGS = frozenset({258, 273, 279, 320, 324, 325})  # bits, strips, palette, tiles
_DEEPEST = 3


_DICOM_META = re.compile(rb"\x02\0\0\0UL\x04\0|\x02\0[\x01\x02\x10]\0(?:OB|UI)")
# Value representations of the elements that open a dataset: lengths, character sets, kinds, identifiers, dates.
_DICOM_FIRST_TYPES = (b"UL", b"CS", b"UI", b"DA", b"TM", b"DT", b"SH", b"LO")


@dataclass(frozen=True)
class Picture:
    """A file for Pillow, and what was known before it read a byte.

    Attributes:
        content: The first picture alone.
        exif: The EXIF block (a TIFF structure), empty if there is none.
        more: Whether other pictures follow in the same file.
    """

    content: bytes
    exif: bytes
    more: bool


def read_png(content: bytes) -> Picture:
    """Take a PNG file apart (PNG third edition, section 5): header, palette, transparency and pixels stay.

    Raises:
        DecodeError: ``truncated`` before its pixels, or ``unsupported``.
    """
    kept, exif, more = [memoryview(_PNG_START)], b"", False
    view = memoryview(content)
    position, first, last = len(_PNG_START), 0, 0
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(content):
            break
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if kind == b"IDAT":
            first, last = first or position, end
        elif first:
            break  # pixels lie in one run of chunks
        elif kind in _PNG_KEPT:
            kept.append(view[position:end])
        elif kind == b"eXIf":
            exif = content[position + 8 : end - 4]
        elif kind == b"acTL":
            more = content[position + 8 : position + 12] > b"\0\0\0\1"
        position = end
    else:
        raise DecodeError(f"has more than {_MAX_CHUNKS:,} PNG chunks", code="unsupported")
    if not first:
        raise _truncated()
    ending = _PNG_END if last <= len(content) else b""  # so that Pillow sees that the last chunk is cut
    return Picture(b"".join([*kept, view[first:last], ending]), exif, more)


def read_gif(content: bytes) -> Picture:
    """Take a GIF file apart (GIF89a): screen, palette and first picture stay.

    Raises:
        DecodeError: ``truncated`` before the end of the first picture.
    """
    kept, control, found = [], b"", False
    try:
        position = 13 + _gif_palette(content[10])
        kept.append(content[:position])
        while content[position] != _GIF_BLOCK_END:
            kind, start = content[position], position
            if kind == _GIF_BLOCK_IMAGE and found:
                return Picture(b"".join(kept), b"", True)
            if kind == _GIF_BLOCK_IMAGE:
                position = _gif_data_end(content, position + 11 + _gif_palette(content[position + 9]))
                kept += [control, content[start:position], bytes([_GIF_BLOCK_END])]
                found = True
            elif kind == _GIF_BLOCK_EXTENSION:
                position = _gif_data_end(content, position + 2)
                if content[start + 1] == _GIF_GRAPHIC_CONTROL:
                    control = content[start:position]
            else:
                break
    except IndexError as error:
        if not found:
            raise _truncated() from error
    if not found:
        raise DecodeError("is a damaged GIF file: it holds no picture")
    return Picture(b"".join(kept), b"", False)


def _gif_palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_data_end(content: bytes, position: int) -> int:
    while length := content[position]:
        position += 1 + length
    return position + 1


def check_tiff(content: bytes) -> None:
    """Refuse TIFF files (TIFF 6.0 section 2) whose entries hold more together than the file itself.

    Raises:
        DecodeError: ``truncated``, ``unsupported``, or ``not_an_image`` where the header makes no sense.
    """
    try:
        order, wide, start = _tiff_header(content)
        _check_directory(content, order, wide, start, _DEEPEST)
    except struct.error as error:
        raise _truncated() from error


def exif_orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where the block is damaged or says nothing."""
    try:
        order, wide, start = _tiff_header(exif)
        for tag, kind, count, position in _directory(exif, order, wide, start):
            if tag == _ORIENTATION and kind == 3 and count == 1:
                value = struct.unpack_from(order + "H", exif, position)[0]
                return value if 1 <= value <= 8 else 1
    except (DecodeError, struct.error):
        return 1
    return 1


def is_dicom(content: bytes) -> bool:
    """Whether the bytes are a DICOM file, with the preamble (PS3.10 section 7.1) or, as in old archives, without.

    Without it, they must start with a group of file meta information, or with two elements of group 0008 in order.
    """
    if content[128:132] == b"DICM" or _DICOM_META.match(content):
        return True
    return any(_starts_like_a_dataset(content, order) for order in "<>")


def _tiff_header(content: bytes) -> tuple[str, bool, int]:
    """Byte order for struct, whether it is a BigTIFF, and where the first directory lies."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        raise DecodeError("is a damaged TIFF file: it does not say its byte order")
    wide = struct.unpack_from(order + "H", content, 2)[0] == 43
    return order, wide, struct.unpack_from(order + ("Q" if wide else "I"), content, 8 if wide else 4)[0]


def _directory(content: bytes, order: str, wide: bool, start: int) -> list[tuple[int, int, int, int]]:
    """Tag, type, count and position of the value (or of the offset to it) of all entries."""
    if start >= len(content):
        raise _truncated()
    count = struct.unpack_from(order + ("Q" if wide else "H"), content, start)[0]
    if count > _MAX_ENTRIES:
        raise DecodeError(f"has {count:,} TIFF entries; {_MAX_ENTRIES:,} are allowed", code="unsupported")
    head, size, form = (8, 20, "HHQ") if wide else (2, 12, "HHI")
    value = struct.calcsize("=" + form)
    positions = range(start + head, start + head + size * count, size)
    return [(*struct.unpack_from(order + form, content, place), place + value) for place in positions]


def _check_directory(content: bytes, order: str, wide: bool, start: int, depth: int) -> None:
    held = 0
    for tag, kind, count, position in _directory(content, order, wide, start):
        if count > _MAX_VALUES and kind not in _TIFF_TEXT_TYPES:
            raise DecodeError(f"has {count:,} values in TIFF entry {tag}", code="unsupported")
        size = _TIFF_TYPE_BYTES.get(kind, 1) * count
        held += size
        if tag in _PIXEL_TAGS and size > (8 if wide else 4):
            place = struct.unpack_from(order + ("Q" if wide else "I"), content, position)[0]
            if place + size > len(content):
                raise _truncated()
        if tag in _SUB_DIRECTORIES and count == 1:
            if depth == 0:
                raise DecodeError("is a damaged TIFF file: its directories lie in one another")
            form = {3: "H", 16: "Q", 18: "Q"}.get(kind, "I")
            child = struct.unpack_from(order + form, content, position)[0]
            if child < len(content):
                _check_directory(content, order, wide, child, depth - 1)
    # Entries may share bytes, so that a small file could be read into gigabytes.
    if held > len(content):
        raise _truncated()


def _starts_like_a_dataset(content: bytes, order: str) -> bool:
    position, last = 0, -1
    for _ in range(2):
        if position + 8 > len(content):
            return False
        group, element, vr, short = struct.unpack_from(order + "HH2sH", content, position)
        if group != 8 or not last < element <= 0x1200:
            return False
        last = element
        if vr in _DICOM_FIRST_TYPES:
            position += 8 + short
        else:
            position += 8 + struct.unpack_from(order + "I", content, position + 4)[0]
    return True


def _truncated() -> DecodeError:
    return DecodeError("is truncated: the file ends before its last pixel", code="truncated")
