"""Damaged and hostile films: an image or DecodeError, in seconds and in less than a gigabyte, whatever the bytes.

The cases run in a process of their own, which tells its largest memory and whose death by a native decoder is seen.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

CASES = 2000
DEADLINE = 10.0  # seconds for one case; they take milliseconds, but other tests may hold the processors
MOST_MEMORY = 1_000_000  # KiB, at any time in a case, of the process with all its libraries
LARGEST_SEED = 1_500_000  # bytes; what is larger only takes longer

SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
# What pydicom ships and its encoders cannot make: JPEG-LS, lossless and 12-bit JPEG, colours of all kinds.
SHIPPED = (
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "JPGExtended.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_rle_16bit.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "693_J2KI.dcm",
    "JPEG2000.dcm",
    "image_dfl.dcm",
)
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

# Kind, whether near the start, where, how much, and what: one step from a good file to a bad one.
Damage = tuple[int, bool, int, int, int]
KINDS = 9


@functools.cache
def seeds() -> list[bytes]:
    """Good files of every format and transfer syntax: small ones made here, and the real films where they are."""
    films = [*pictures(), *dicoms()]
    if real := os.environ.get("CXR_REAL_DATA"):
        files = sorted(file for file in Path(real, "originals").rglob("*") if file.is_file() and file.suffix != ".csv")
        films += [file.read_bytes() for file in files if file.stat().st_size <= LARGEST_SEED]
    return films


def pictures() -> Iterator[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    smooth = np.add.outer(np.arange(40), np.arange(56)).astype(np.uint8)
    colour, gray = Image.fromarray(noise[..., :3]), Image.fromarray(smooth)
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(255 - smooth)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    for image, file_format, options in [
        (gray, "PNG", {"exif": exif}),
        (colour, "PNG", {}),
        (Image.fromarray(noise), "PNG", {}),
        (colour.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(smooth.astype(np.uint16) * 257), "PNG", {}),
        (gray, "PNG", frames),
        (gray.convert("1"), "PNG", {}),
        (gray, "JPEG", {"exif": exif}),
        (colour, "JPEG", {"subsampling": 2}),
        (colour, "JPEG", {"progressive": True, "restart_marker_rows": 1}),
        (colour.convert("CMYK"), "JPEG", {}),
        (gray, "WEBP", {}),
        (Image.fromarray(noise), "WEBP", {"lossless": True, "exif": exif}),
        (gray, "WEBP", frames),
        (gray, "TIFF", {}),
        (gray, "TIFF", frames),
        (gray, "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        (colour, "TIFF", {"compression": "jpeg"}),
        (Image.fromarray(smooth.astype(np.uint16) * 257), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (gray.convert("1"), "TIFF", {"compression": "group4"}),
        (Image.fromarray(smooth.astype(np.float32)), "TIFF", {"compression": "packbits"}),
        (gray, "BMP", {}),
        (colour, "BMP", {}),
        (gray.convert("1"), "BMP", {}),
        (gray, "GIF", {}),
        (colour.quantize(64), "GIF", frames),
    ]:
        sink = io.BytesIO()
        image.save(sink, file_format, **options)
        yield sink.getvalue()


def dicoms() -> Iterator[bytes]:
    rows = np.add.outer(np.arange(40), np.arange(56))
    yield dicom(rows.astype(np.uint8), ExplicitVRLittleEndian)
    yield dicom((rows * 16).astype(np.uint16), ImplicitVRLittleEndian)
    yield dicom((rows * 16).astype(np.uint16), ImplicitVRLittleEndian)[132:]
    yield dicom((rows * 16 - 900).astype(np.int16), ExplicitVRBigEndian)
    yield dicom((rows * 16).astype(np.uint16), DeflatedExplicitVRLittleEndian)
    for syntax in (RLELossless, JPEG2000Lossless):
        yield dicom(rows.astype(np.uint8), syntax)
        yield dicom((rows * 16).astype(np.uint16), syntax)
    sink = io.BytesIO()
    Image.fromarray(rows.astype(np.uint8)).save(sink, "JPEG")
    yield dicom(rows.astype(np.uint8), UID("1.2.840.10008.1.2.4.50"), sink.getvalue())
    yield dicom(rows.astype(np.uint16), UID("1.2.840.10008.1.2.4.70"), lossless_jpeg(rows.astype(np.uint16), 16))
    for name in SHIPPED:
        film = pydicom.dcmread(str(get_testdata_file(name)))
        film.SOPClassUID, film.Modality = SECONDARY_CAPTURE, "CR"
        sink = io.BytesIO()
        film.save_as(sink, enforce_file_format=True)
        yield sink.getvalue()


def dicom(values: np.ndarray, syntax: UID, stream: bytes | None = None) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SECONDARY_CAPTURE, UID("1.2.3")
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    film = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=little)
    film.SOPClassUID, film.SOPInstanceUID, film.Modality = SECONDARY_CAPTURE, "1.2.3", "CR"
    film.Rows, film.Columns = values.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME1"
    film.BitsAllocated = film.BitsStored = values.dtype.itemsize * 8
    film.HighBit, film.PixelRepresentation = film.BitsStored - 1, int(values.dtype.kind == "i")
    film.WindowCenter, film.WindowWidth = [600, 500], [900, 800]
    film.RescaleSlope, film.RescaleIntercept, film.PixelPaddingValue = 1.5, -3, 0
    film.PixelData = values.astype(values.dtype.newbyteorder("<" if little else ">")).tobytes()
    film["PixelData"].VR = "OW"
    if stream is not None:
        film.PixelData = encapsulate([stream])
        film["PixelData"].is_undefined_length = True
        film["PixelData"].VR = "OB"
        meta.TransferSyntaxUID = syntax
    elif syntax.is_encapsulated:
        film.compress(syntax, values)
    sink = io.BytesIO()
    film.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def lossless_jpeg(values: np.ndarray, precision: int) -> bytes:
    """ITU-T T.81 annex H with the first predictor: each sample as its difference from its left neighbour."""
    left = np.empty(values.shape, np.int64)
    left[:, 1:], left[1:, 0], left[0, 0] = values[:, :-1], values[:-1, 0], 1 << (precision - 1)
    bits = []
    for difference in (values - left).ravel().tolist():
        size = abs(difference).bit_length()
        bits.append(f"{size:05b}")  # a Huffman table of 17 codes of five bits: the number of bits that follow
        if 0 < size < 16:  # 16 stands for 32,768 alone
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    segments = [
        (0xC3, struct.pack(">BHHB3B", precision, *values.shape, 1, 1, 0x11, 0)),
        (0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    ]
    head = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return b"\xff\xd8" + head + data + b"\xff\xd9"


def damage(content: bytes, steps: list[Damage]) -> bytes:
    film = bytearray(content)
    for kind, near, where, much, what in steps:
        if not film:
            break
        at = where % min(len(film), 400 if near else len(film))
        end = at + 1 + much % 64
        if kind == 0:
            film[at] ^= 1 << what % 8
        elif kind == 1:
            film[at] = EXTREMES[what % 6]
        elif kind == 2:
            number = EXTREMES[what % len(EXTREMES)]
            form = ("<H", ">H", "<I", ">I")[much % 4]
            field = struct.pack(form, number & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
            film[at : at + len(field)] = field
        elif kind == 3:
            del film[at:]
        elif kind == 4:
            del film[at:end]
        elif kind == 5:
            film[at:at] = film[at:end] * (1 + what % 40)
        elif kind == 6:
            film[at:at] = random.Random(what).randbytes(1 + much % 64)
        elif kind == 7:
            other = seeds()[what % len(seeds())]
            film[at:] = other[at % max(1, len(other)) :]
        elif kind == 8:
            # A run of one byte: what makes counts and lengths of all sizes at once.
            film[at:end] = bytes([EXTREMES[what % 6]]) * (end - at)
    return with_checksums(bytes(film))


def with_checksums(content: bytes) -> bytes:
    """A PNG whose checksums are right again, without which its damage would not get past them."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    mended, position = content[:8], 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        chunk = content[position + 4 : position + 8 + length]
        if position + 12 + length > len(content):
            break
        mended += content[position : position + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        position += 12 + length
    return mended + content[position:]


class Decoders:
    """A process that decodes what it is sent; started anew when a case has brought it down."""

    def __init__(self, folder: Path, command: list[str], deadline: float = DEADLINE) -> None:
        self.folder = folder
        self.deadline = deadline
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def verdict(self, content: bytes) -> dict[str, Any]:
        """``ok``, ``refused`` or what went wrong, seconds and KiB; failing cases are kept in the folder."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(struct.pack("<Q", len(content)) + content)
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answered = selector.select(self.deadline)
        line = process.stdout.readline() if answered else b""
        if line:
            verdict = json.loads(line)
            if verdict["memory"] > MOST_MEMORY:
                verdict["outcome"] = f"took {verdict['memory']:,} KiB"
        else:
            verdict = {
                "outcome": f"died with {process.wait(5)}" if answered else f"hung for {self.deadline} s",
                "memory": 0,
            }
        if verdict["outcome"] not in ("ok", "refused"):
            self.close()
            kept = self.folder / f"{zlib.crc32(content):08x}.film"
            kept.write_bytes(content)
            verdict["outcome"] += f" on {kept}"
        return verdict

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # imports are done, and do not count against the deadline
        return self._process


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoders]:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve())]
    decoders = Decoders(tmp_path_factory.mktemp("failing"), command)
    yield decoders
    decoders.close()


@pytest.mark.parametrize(
    ("deed", "outcome", "deadline"),
    [
        ("os.abort()", "died with -6", 30),
        ("time.sleep(60)", "hung for 1", 1),
        ("bytearray(1_100_000_000)", "took 1,", 30),
        ("raise ValueError('odd')", "ValueError: odd", 30),
    ],
)
def test_the_watch_sees_what_it_is_for(tmp_path: Path, deed: str, outcome: str, deadline: float) -> None:
    code = f"import os, sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"import test_decode_fuzz as fuzz\nfuzz.serve(lambda content: exec({deed!r}))"
    watch = Decoders(tmp_path, [sys.executable, "-c", code], deadline)
    verdict = watch.verdict(b"a film")
    watch.close()
    assert outcome in verdict["outcome"]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"a film"]


def test_every_seed_is_a_good_film(decoders: Decoders) -> None:
    outcomes = [decoders.verdict(content)["outcome"] for content in seeds()]
    assert outcomes == ["ok"] * len(outcomes)


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGBA", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        ("CMYK", "JPEG", {"progressive": True}),
        ("F", "TIFF", {"compression": "tiff_lzw"}),
        ("RGBA", "PNG", {"compress_level": 1}),
    ],
)
def test_the_largest_film_takes_less_than_a_gigabyte(
    decoders: Decoders, mode: str, file_format: str, options: dict[str, Any]
) -> None:
    film = Image.new(mode, (7140, 7000))
    noise = np.random.default_rng(0).integers(0, 256, (7000, 200), np.uint8)
    film.paste(Image.fromarray(noise).convert("RGB" if mode == "CMYK" else mode).convert(mode), (0, 0))
    sink = io.BytesIO()
    film.save(sink, file_format, **options)
    del film
    verdict = decoders.verdict(sink.getvalue())
    assert verdict["outcome"] == "ok", verdict
    assert verdict["memory"] > 150_000  # it did decode them all


steps = st.tuples(
    st.integers(0, KINDS - 1), st.booleans(), st.integers(0, 2**24), st.integers(0, 255), st.integers(0, 2**16)
)


@pytest.mark.timeout(1200)
@settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**16), damages=st.lists(steps, min_size=1, max_size=6))
def test_damaged_films_are_decoded_or_refused(decoders: Decoders, seed: int, damages: list[Damage]) -> None:
    verdict = decoders.verdict(damage(seeds()[seed % len(seeds())], damages))
    assert verdict["outcome"] in ("ok", "refused"), verdict


def decode(content: bytes) -> np.ndarray:
    from cxr_ray.data.decode import decode_square

    return decode_square(content, 64, "squash")[0]


def serve(decode: Callable[[bytes], np.ndarray]) -> None:
    """Answer each film on standard input with one line of JSON on standard output."""
    from cxr_ray.errors import DecodeError

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native decoders print
    answers.write(b"ready\n")
    while header := sys.stdin.buffer.read(8):
        content = sys.stdin.buffer.read(struct.unpack("<Q", header)[0])
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the case before (man 5 proc)
        try:
            square = decode(content)
            outcome = "ok" if square.shape == (64, 64) and square.dtype == np.uint8 else f"made {square.shape}"
        except DecodeError:
            outcome = "refused"
        except BaseException:  # nothing else may leave the decoder, not even on bytes like these
            outcome = traceback.format_exc()
        status = Path("/proc/self/status").read_text()
        memory = int(status.split("VmHWM:")[1].split()[0])
        answers.write(json.dumps({"outcome": outcome, "memory": memory}).encode() + b"\n")


if __name__ == "__main__":
    decode(seeds()[0])
    serve(decode)
