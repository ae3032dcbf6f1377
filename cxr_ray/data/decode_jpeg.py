"""What the markers of JPEG, JPEG-LS and JPEG 2000 streams claim, read before a native decoder sees them.

The decoders allocate and loop by what a stream says of itself. A damaged or hostile one is refused here, where that
costs nothing: ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cxr_ray.errors import DecodeError

BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
_FRAMES = frozenset({*range(0xC0, 0xD0), JPEG_LS}) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_SCAN, _END = 0xDA, 0xD9
_APP1, _APP2, _APP11 = 0xE1, 0xE2, 0xEB
_HIERARCHICAL = frozenset({0xDE, 0xDF})
_KEPT_METADATA = frozenset({0xE0, 0xEE})  # JFIF and Adobe say how the colours are coded

_MAX_SEGMENTS = 5_000
_MAX_SCANS = 300  # progressive files have about 10; each costs a pass over all pixels, however few bytes it has

_MAX_TILES = 10_000
_MAX_TILE_PARTS = 20_000
_MAX_BLOCKS = 1_000_000  # a film of 50 megapixels in the usual blocks of 64 x 64 has 12,000
_MAX_PACKETS = 4_000_000


@dataclass(frozen=True)
class Stream:
    """What a compressed stream says of itself: pixels, components, bits a sample, and for JPEG the process (SOFn)."""

    width: int
    height: int
    components: int
    precision: int
    process: int


@dataclass(frozen=True)
class JpegFile:
    """A JPEG picture without what does not touch its pixels.

    Attributes:
        stream: What its frame header says.
        content: The file without EXIF, XMP, colour profiles, thumbnails and comments.
        exif: The EXIF block (a TIFF structure), empty if there is none.
        more: Whether other pictures follow in the same file (MPO).
    """

    stream: Stream
    content: bytes
    exif: bytes
    more: bool


def read_jpeg(content: bytes) -> JpegFile:
    """Take a JPEG file apart.

    Raises:
        DecodeError: ``truncated``, ``unsupported``, or ``not_an_image`` where the markers make no sense.
    """
    kept, exif, more = [content[:2]], b"", False
    stream = None
    for marker, start, end in _segments(content):
        body = content[start + 4 : end]
        if marker == _SCAN:
            if stream is None:
                break
            kept.append(content[start:])
            return JpegFile(stream, b"".join(kept), exif, more)
        if marker == _APP1 and body.startswith(b"Exif\0\0") and not exif:
            exif = body[6:]
        more = more or (marker == _APP2 and body.startswith(b"MPF\0"))
        if marker in _FRAMES:
            stream = _frame(marker, body)
        if not 0xE0 <= marker <= 0xEF or marker in _KEPT_METADATA:
            kept.append(content[start:end])
    raise DecodeError("is a damaged JPEG file: it has no frame before its first scan")


def read_jpeg_stream(content: bytes) -> Stream:
    """The frame header of a JPEG or JPEG-LS stream inside DICOM.

    Raises:
        DecodeError: As `read_jpeg`; also for hierarchical streams and JPEG XT, which no film uses.
    """
    if content[:2] != b"\xff\xd8":
        raise DecodeError("is damaged: its pixels are no JPEG stream")
    stream = None
    for marker, start, end in _segments(content):
        if marker in _HIERARCHICAL or marker == _APP11:
            raise DecodeError("holds a hierarchical JPEG or JPEG XT stream", code="unsupported")
        if marker in _FRAMES:
            if stream is not None:
                break
            stream = _frame(marker, content[start + 4 : end])
        if marker == _SCAN and stream is not None:
            return stream
    raise DecodeError("is damaged: its JPEG stream has no single frame before its first scan")


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the segments up to the first scan; fill bytes and strays are passed over."""
    if content.count(b"\xff\xda") > _MAX_SCANS:  # in the data of a scan, a zero follows each 255
        raise DecodeError(f"has more than {_MAX_SCANS} JPEG scans", code="unsupported")
    position = 2
    for _ in range(_MAX_SEGMENTS):
        position = content.find(b"\xff", position)
        while position >= 0 and content[position + 1 : position + 2] == b"\xff":
            position += 1
        if position < 0 or position + 2 > len(content):
            raise _truncated()
        marker = content[position + 1]
        if marker == 0 or marker in _STANDALONE:
            position += 2
            continue
        if marker == _END:
            return
        if position + 4 > len(content):
            raise _truncated()
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        end = position + 2 + length
        if length < 2:
            raise DecodeError("is a damaged JPEG file: a segment has no length")
        if end > len(content):
            raise _truncated()
        yield marker, position, end
        if marker == _SCAN:
            return
        position = end
    raise DecodeError(f"has more than {_MAX_SEGMENTS:,} JPEG segments", code="unsupported")


def _frame(marker: int, body: bytes) -> Stream:
    if len(body) < 6 or len(body) < 6 + 3 * body[5] or not body[5]:
        raise DecodeError("is a damaged JPEG file: its frame header is too short")
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    if height == 0:
        raise DecodeError("is a JPEG file that does not say its height", code="unsupported")
    factors = [body[7 + 3 * k] for k in range(components)]
    if components > 4 or not all(1 <= factor >> 4 <= 4 and 1 <= factor & 15 <= 4 for factor in factors):
        raise DecodeError("is a damaged JPEG file: its frame header makes no sense")
    return Stream(width, height, components, precision, marker)


def read_jpeg2000_stream(content: bytes) -> Stream:
    """The header of a JPEG 2000 codestream, bare or in a JP2 box, with the work it asks for judged.

    Raises:
        DecodeError: ``truncated``, ``unsupported``, or ``not_an_image`` where the markers make no sense.
    """
    start = content.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        raise DecodeError("is damaged: its pixels are no JPEG 2000 stream")
    try:
        return _jpeg2000(content, start)
    except struct.error as error:
        raise _truncated() from error


def _jpeg2000(content: bytes, start: int) -> Stream:
    size = struct.unpack_from(">HHIIIIIIIIH", content, start + 4)
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = size[2:]
    width, height = right - left, bottom - top
    if not 1 <= components <= 4 or min(width, height, tile_width, tile_height) < 1:
        raise DecodeError("is damaged: its JPEG 2000 header makes no sense")
    if any(content[start + 43 + 3 * k : start + 45 + 3 * k] != b"\1\1" for k in range(components)):
        raise DecodeError("holds a JPEG 2000 stream whose components differ in size", code="unsupported")
    across, down = -(-(right - tile_left) // tile_width), -(-(bottom - tile_top) // tile_height)
    if across * down > _MAX_TILES:
        raise DecodeError(f"has more than {_MAX_TILES:,} JPEG 2000 tiles", code="unsupported")
    pixels = components * width * height
    position = start + 2
    tile_parts = tile = tile_length = 0
    while tile_parts < _MAX_TILE_PARTS:
        marker, length = struct.unpack_from(">HH", content, position)
        body = position + 4
        if marker == 0xFF90:  # start of a tile-part, whose length counts from here; 0 means to the end
            tile_parts += 1
            tile, tile_length = position, struct.unpack_from(">I", content, body + 2)[0]
        if marker == 0xFF52:
            progression = struct.unpack_from(">BBHB", content, body)
            _check_coding(content, body + 5, bool(progression[0] & 1), progression[2], pixels, across * down)
        elif marker == 0xFF53:
            style = struct.unpack_from(">BB", content, body)[1]
            _check_coding(content, body + 2, bool(style & 1), 1, pixels, across * down)
        position += 2 + length
        if content[position : position + 2] == b"\xff\x93":  # the data of the tile-part
            if not tile_parts or not tile_length:
                break
            position = tile + max(tile_length, position - tile)
            if content[position : position + 2] in (b"\xff\xd9", b""):
                break
        elif length < 2:
            raise DecodeError("is damaged: a JPEG 2000 segment has no length")
    precision = 1 + (content[start + 42] & 0x7F)
    return Stream(width, height, components, precision, 0)


def _check_coding(content: bytes, position: int, own_precincts: bool, layers: int, pixels: int, tiles: int) -> None:
    """Refuse parameters that ask for more code blocks or packets than any film needs.

    Args:
        content: The stream.
        position: Of the number of decomposition levels.
        own_precincts: Whether the sizes of the precincts follow.
        layers: Quality layers.
        pixels: Of all components.
        tiles: Each has at least one block and packet a level.
    """
    levels, block_width, block_height = struct.unpack_from(">BBB", content, position)
    sizes = content[position + 5 : position + 6 + levels] if own_precincts else b""
    if levels > 32 or block_width > 8 or block_height > 8:
        raise DecodeError("is damaged: its JPEG 2000 coding style makes no sense")
    blocks = pixels >> (block_width + block_height + 4)
    # From the coarsest level to the full size, which has all the pixels.
    precincts = sum(pixels >> (2 * (levels - k) + (size & 15) + (size >> 4)) for k, size in enumerate(sizes))
    packets = (precincts + tiles * (levels + 1)) * layers
    if blocks > _MAX_BLOCKS or precincts > _MAX_BLOCKS or packets > _MAX_PACKETS:
        raise DecodeError("holds a JPEG 2000 stream cut into more pieces than any film", code="unsupported")


def _truncated() -> DecodeError:
    return DecodeError("is truncated: the file ends before its last pixel", code="truncated")
