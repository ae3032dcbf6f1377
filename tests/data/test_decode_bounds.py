"""Files that claim much in few bytes: refused by what they claim, before that costs memory or time."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from cxr_ray.data.decode import MAX_PIXELS, decode_bytes
from cxr_ray.errors import DecodeError

NOISE = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)
FILM = Image.fromarray(NOISE)
MOST_BYTES = 40_000_000  # that Python and NumPy may allocate on top of a film's own
MOST_SECONDS = 15.0  # where the unbounded work takes minutes


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, file_format, **options)
    return sink.getvalue()


def cheaply(content: bytes) -> np.ndarray | DecodeError:
    """The pixels or the refusal of a film, within bounds of memory and time."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        return decode_bytes(content).pixels
    except DecodeError as error:
        return error
    finally:
        seconds, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seconds < MOST_SECONDS
        assert peak < MOST_BYTES + 4 * len(content)


def refused(content: bytes, words: str, code: str = "unsupported") -> None:
    outcome = cheaply(content)
    assert isinstance(outcome, DecodeError), outcome
    assert words in str(outcome)
    assert outcome.code == code


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"\0" * 10) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = [header, *chunks, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def patched(content: bytes, at: int, form: str, *values: int) -> bytes:
    film = bytearray(content)
    struct.pack_into(form, film, at, *values)
    return bytes(film)


def jpeg(width: int, height: int, **options) -> bytes:
    content = encoded(FILM, "JPEG", **options)
    frame = content.index(b"\xff\xc2" if options else b"\xff\xc0")
    return patched(content, frame + 5, ">HH", height, width)


def tiff(width: int, height: int) -> bytes:
    content = encoded(FILM, "TIFF", compression="tiff_lzw")
    for tag, value in ((256, width), (257, height)):
        at = content.index(struct.pack("<HH", tag, 3))
        content = patched(content, at + 2, "<HII", 4, 1, value)
    return content


def webp(width: int, height: int) -> bytes:
    content = encoded(FILM.convert("RGBA"), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    at = content.index(b"VP8X") + 12
    return content[:at] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + content[at + 6 :]


CLAIMS: dict[str, Callable[[int, int], bytes]] = {
    "png": png,
    "jpeg": jpeg,
    "progressive jpeg": lambda width, height: jpeg(width, height, progressive=True),
    "gif": lambda width, height: patched(encoded(FILM, "GIF"), 6, "<HH", width, height),
    "bmp": lambda width, height: patched(encoded(FILM, "BMP"), 18, "<ii", width, height),
    "tiff": tiff,
    "webp": webp,
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (7000, 7143), (7000, 7000)])
def test_a_picture_that_claims_more_than_its_bytes_can_hold_is_refused_from_its_header(name, width, height):
    limit = 16_383 if name == "webp" else 65_535  # of the format
    outcome = cheaply(CLAIMS[name](min(width, limit), min(height, limit)))
    assert isinstance(outcome, DecodeError)
    # libwebp compares the two sizes that a file states before it allocates.
    assert outcome.code == ("not_an_image" if name == "webp" and width < 8000 else "too_many_pixels")


def test_the_limit_is_the_callers():
    content = encoded(FILM, "PNG")
    assert decode_bytes(content, max_pixels=32 * 48).pixels.shape == (32, 48)
    with pytest.raises(DecodeError, match="has 48 x 32 pixels, more than the 1,535 allowed"):
        decode_bytes(content, max_pixels=32 * 48 - 1)


def test_a_film_longer_than_opencv_can_count_is_refused():
    refused(encoded(Image.new("L", (40_000, 20)), "PNG"), "an edge may have 32,767", "too_many_pixels")


def test_metadata_of_a_png_is_passed_over_however_long():
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 30_000_000))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 30_000_000))
    rows = b"".join(b"\0" + row.tobytes() for row in NOISE)
    outcome = cheaply(png(48, 32, bomb, profile, *[chunk(b"tEXt", b"a\0b")] * 5000, pixels=rows))
    np.testing.assert_array_equal(outcome, NOISE)


def test_a_png_of_countless_chunks_is_refused():
    refused(png(48, 32, chunk(b"tEXt", b"") * 210_000), "PNG chunks")


def test_exif_entries_that_share_their_bytes_are_not_read_one_by_one():
    entries = b"".join(struct.pack("<HHII", 0x9000 + k, 7, 60_000, 8) for k in range(5000))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries
    outcome = cheaply(encoded(FILM, "JPEG", quality=95, exif=exif))
    assert isinstance(outcome, np.ndarray)
    for file_format in ("PNG", "WEBP"):
        assert isinstance(cheaply(encoded(FILM, file_format, exif=exif)), np.ndarray)


def tiff_with(*entries: tuple[int, int, int, int], after: bytes = b"") -> bytes:
    """A plain TIFF film with further entries (tag, type, count, value) that Pillow would not write."""
    basic = [(256, 4, 1, 48), (257, 4, 1, 32), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1), (273, 4, 1, 8)]
    basic += [(277, 4, 1, 1), (278, 4, 1, 32), (279, 4, 1, NOISE.nbytes)]
    replaced = {entry[0] for entry in entries}
    fields = sorted([*[entry for entry in basic if entry[0] not in replaced], *entries])
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields)
    return struct.pack("<2sHI", b"II", 42, 8 + NOISE.nbytes) + NOISE.tobytes() + directory + b"\0" * 4 + after


def test_a_plain_tiff_with_further_entries_decodes():
    np.testing.assert_array_equal(cheaply(tiff_with((270, 7, 1000, 8))), NOISE)


def test_tiff_entries_that_share_their_bytes_are_refused():
    padding = b"\0" * 1_000_000
    refused(tiff_with(*[(40_000 + k, 7, 1_000_000, 8) for k in range(3000)], after=padding), "", "truncated")
    refused(tiff_with((40_000, 5, 300_000, 8), after=b"\0" * 3_000_000), "300,000 values")


def test_a_tiff_whose_directories_lie_in_one_another_is_refused():
    start = 8 + NOISE.nbytes
    refused(tiff_with((0x8769, 4, 1, start)), "directories", "not_an_image")


def test_tiff_tiles_and_compressions_no_film_has_are_refused():
    tiles = [(322, 4, 1, 1 << 20), (323, 4, 1, 1 << 20), (324, 4, 1, 8), (325, 4, 1, 100), (259, 4, 1, 5)]
    refused(tiff_with(*tiles), "TIFF tiles")
    refused(tiff_with((259, 4, 1, 34925)), "compression lzma")


def test_gif_comments_are_passed_over_however_long():
    content = encoded(FILM, "GIF")
    image = content.index(b",", 13 + 768)
    comment = b"\x21\xfe" + (b"\xff" + b"a" * 255) * 40_000 + b"\0"
    np.testing.assert_array_equal(cheaply(content[:image] + comment + content[image:]), NOISE)


def test_a_jpeg_of_countless_scans_or_segments_is_refused():
    content = encoded(FILM, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    refused(content[:-2] + content[last:-2] * 1000 + content[-2:], "JPEG scans")
    refused(content[:2] + b"\xff\xfe\0\2" * 100_000 + content[2:], "JPEG segments")


def dicom(stream: bytes | None, syntax: UID, rows: int = 32, columns: int = 48, bits: int = 8, **tags) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ComputedRadiographyImageStorage, UID("1.2.3")
    film = FileDataset("", {}, b"\0" * 128, meta)
    film.SOPClassUID, film.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3"
    film.Rows, film.Columns, film.SamplesPerPixel, film.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    film.BitsAllocated = film.BitsStored = bits
    film.HighBit, film.PixelRepresentation = bits - 1, 0
    for name, value in tags.items():
        setattr(film, name, value)
    film.PixelData = (
        NOISE.tobytes() if stream is None else stream if not syntax.is_encapsulated else encapsulate([stream])
    )
    film["PixelData"].VR = "OB" if bits == 8 else "OW"
    film["PixelData"].is_undefined_length = syntax.is_encapsulated
    sink = io.BytesIO()
    film.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def with_element(content: bytes, tag: int, element: bytes) -> bytes:
    """A DICOM file with another element in front of the first whose tag is greater."""
    film = pydicom.dcmread(io.BytesIO(content))
    after = next(element.tag for element in film if element.tag > tag)
    at = content.index(struct.pack("<HH", after >> 16, after & 0xFFFF), 300)
    return content[:at] + element + content[at:]


PLAIN = dicom(None, ExplicitVRLittleEndian)


def test_the_plain_dicom_film_of_these_tests_decodes():
    assert decode_bytes(PLAIN).pixels.std() > 50


@pytest.mark.parametrize(("rows", "columns"), [(65_535, 65_535), (7000, 7000)])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit], ids=lambda uid: uid.name)
def test_dicom_headers_that_claim_more_than_the_file_can_hold_are_refused(syntax, rows, columns):
    refused(dicom(b"\0" * 100, syntax, rows, columns), "pixels", "too_many_pixels")


def jpeg_2000(at: int, form: str, *values: int) -> bytes:
    content = encoded(FILM, "JPEG2000", no_jp2=True, irreversible=False)
    return patched(content, at, form, *values)


@pytest.mark.parametrize(
    ("stream", "syntax"),
    [
        (jpeg(60_000, 60_000), JPEGBaseline8Bit),
        (jpeg(64, 48), JPEGBaseline8Bit),
        (encoded(FILM.convert("RGB"), "JPEG"), JPEGBaseline8Bit),
        (jpeg_2000(8, ">II", 64, 48), JPEG2000Lossless),
    ],
)
def test_a_stream_that_claims_another_image_than_the_header_is_refused(stream, syntax):
    refused(dicom(stream, syntax), "under a header of 48 x 32 x 1", "not_an_image")


def test_a_stream_of_another_process_than_the_transfer_syntax_is_refused():
    refused(dicom(encoded(FILM, "JPEG", progressive=True), JPEGBaseline8Bit), "transfer syntax", "not_an_image")


def test_a_jpeg_2000_stream_in_countless_pieces_is_refused():
    film = Image.fromarray(np.tile(NOISE, (20, 20)))
    content = encoded(film, "JPEG2000", no_jp2=True)
    assert isinstance(cheaply(dicom(content, JPEG2000Lossless, 640, 960)), np.ndarray)
    refused(dicom(patched(content, 24, ">II", 1, 1), JPEG2000Lossless, 640, 960), "JPEG 2000 tiles")
    coding = content.index(b"\xff\x52")
    in_layers = patched(patched(content, coding + 6, ">H", 65_535), 24, ">II", 80, 80)
    refused(dicom(in_layers, JPEG2000Lossless, 640, 960), "more pieces than any film")
    precincts = encoded(film, "JPEG2000", no_jp2=True, precinct_size=(64, 64))
    coding = precincts.index(b"\xff\x52")
    levels = precincts[coding + 9]
    tiny = patched(precincts, coding + 14, f"{levels + 1}B", *[0] * (levels + 1))
    refused(dicom(patched(tiny, coding + 6, ">H", 20), JPEG2000Lossless, 640, 960), "more pieces than any film")


def test_a_deflated_dataset_is_inflated_no_further_than_a_film():
    content = dicom(None, DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(cheaply(content), decode_bytes(PLAIN).pixels)
    start = 132 + 12 + pydicom.dcmread(io.BytesIO(content)).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(b"\0" * 10_000_000) for _ in range(3)) + packer.flush()
    with pytest.raises(DecodeError, match="more than the") as refusal:
        decode_bytes(content[:start] + bomb, max_pixels=MAX_PIXELS // 10)
    assert refusal.value.code == "too_many_pixels"


def test_run_lengths_that_unpack_to_more_than_the_film_are_cut_off_there():
    run = bytes([129, 7])  # 128 times the same
    stream = struct.pack("<16I", 1, 64, *[0] * 14) + run * 2_000_000
    outcome = cheaply(dicom(stream, RLELossless))
    np.testing.assert_array_equal(outcome, np.zeros((32, 48)))


def test_dicom_elements_without_end_are_not_read():
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 200_000
    endless = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + items
    closing = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    refused(with_element(PLAIN, 0x00081140, endless + closing), "more DICOM elements or fragments")
    elements = b"".join(struct.pack("<HH2sH", 0x0009, k % 65_536, b"LO", 0) for k in range(100_000))
    refused(with_element(PLAIN, 0x00090000, elements), "more DICOM elements or fragments")


def test_dicom_items_inside_items_without_end_are_refused():
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    nested = (opening + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 20_000
    assert isinstance(cheaply(with_element(PLAIN, 0x00081140, nested)), DecodeError)


@pytest.mark.parametrize(("tag", "vr"), [(0x00281050, b"DS"), (0x00283010, b"SQ"), (0x00280006, b"UN")])
def test_dicom_elements_too_long_for_what_they_are_are_refused_before_they_are_taken_apart(tag, vr):
    body = (b"1\\" if vr == b"DS" else struct.pack("<HHI", 0xFFFE, 0xE000, 0)) * 500_000
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, b"UN" if vr == b"DS" else vr) + struct.pack(
        "<HI", 0, len(body)
    )
    outcome = cheaply(with_element(PLAIN, tag, head + body))
    assert isinstance(outcome, DecodeError)
    assert "bytes" in str(outcome)


def test_a_film_in_countless_fragments_is_refused():
    content = dicom(b"\0\0", RLELossless)
    fragment = struct.pack("<HHI", 0xFFFE, 0xE000, 2) + b"\0\0"
    refused(content.replace(fragment, fragment * 150_000), "more DICOM elements or fragments")
