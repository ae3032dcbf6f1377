"""One suite over every picture format: what goes in comes out as 8-bit luminance, or is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from cxr_ray.bundle import load_bundle
from cxr_ray.data.decode import DecodedImage, decode_bytes, decode_file, decode_square
from cxr_ray.data.resize import fit_square
from cxr_ray.errors import DecodeError

GRADIENT = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (32, 1))
GRAY = Image.fromarray(GRADIENT)
PINK = Image.merge("RGB", [Image.new("L", (48, 32), 255), GRAY, GRAY])


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, file_format, **options)
    return sink.getvalue()


def agrees(content: bytes, tolerance: float = 1.0, expected: np.ndarray = GRADIENT) -> DecodedImage:
    decoded = decode_bytes(content)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert (decoded.height, decoded.width) == decoded.pixels.shape == expected.shape
    assert np.abs(decoded.pixels.astype(int) - expected).mean() <= tolerance
    return decoded


FORMATS = [
    ("PNG", {}, 0),
    ("BMP", {}, 0),
    ("TIFF", {}, 0),
    ("TIFF", {"compression": "tiff_lzw"}, 0),
    ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
    ("TIFF", {"compression": "packbits"}, 0),
    ("TIFF", {"compression": "jpeg", "quality": 95}, 2),
    ("TIFF", {"tiffinfo": {278: 5}}, 0),
    ("WEBP", {"lossless": True}, 1),
    ("WEBP", {"quality": 95}, 3),
    ("JPEG", {"quality": 95}, 2),
    ("JPEG", {"quality": 95, "progressive": True, "subsampling": 2}, 2),
    ("MPO", {"quality": 95}, 2),
]


@pytest.mark.parametrize(("file_format", "options", "tolerance"), FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_gray_and_colour_files_of_every_format_decode_to_their_luminance(file_format, options, tolerance, mode):
    decoded = agrees(encoded(GRAY.convert(mode), file_format, **options), tolerance)
    assert (decoded.bit_depth, decoded.note) == (8, None)
    assert decoded.tint < 0.03


@pytest.mark.parametrize(("file_format", "options", "tolerance"), FORMATS)
def test_colours_become_luminance_by_their_weights(file_format, options, tolerance):
    content = encoded(PINK, file_format, **options)
    expected = np.round(0.299 * 255 + 0.701 * GRADIENT)
    assert decode_bytes(content).tint == pytest.approx(0.5, abs=0.05)
    agrees(content, tolerance + 1, expected)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_image_decodes_to_its_colours_not_its_indices(file_format):
    palette = Image.new("P", GRAY.size)
    palette.putdata((255 - GRADIENT).ravel().tolist())
    palette.putpalette([value for index in range(256) for value in [255 - index] * 3])
    agrees(encoded(palette, file_format), 0)


@pytest.mark.parametrize(
    ("file_format", "options", "mode"),
    [
        *[("PNG", {}, mode) for mode in ("LA", "RGBA")],
        *[("TIFF", {}, mode) for mode in ("LA", "RGBA")],
        *[("TIFF", {"compression": "tiff_lzw"}, mode) for mode in ("LA", "RGBA")],
        ("WEBP", {"lossless": True, "exact": True}, "RGBA"),
    ],
)
def test_transparency_lies_over_black(file_format, options, mode):
    white = [Image.new("L", (48, 32), 255)] * (len(mode) - 1)
    decoded = agrees(encoded(Image.merge(mode, [*white, GRAY]), file_format, **options))
    assert decoded.tint == 0


@pytest.mark.parametrize("row_filter", range(5))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_rows_are_unfiltered_as_the_standard_says(row_filter, channels):
    samples = np.random.default_rng(row_filter).integers(0, 256, (9, 14, channels), dtype=np.uint8)
    left, up, corner = np.zeros((3, *samples.shape), int)
    left[:, 1:], up[1:], corner[1:, 1:] = samples[:, :-1], samples[:-1], samples[:-1, :-1]
    distances = np.abs(np.stack([up - corner, left - corner, left + up - 2 * corner]))
    paeth = np.choose(distances.argmin(axis=0), [left, up, corner])  # PNG third edition, section 9.4
    predicted = [0, left, up, (left + up) // 2, paeth][row_filter]
    rows = ((samples.astype(int) - predicted) % 256).astype(np.uint8).reshape(9, -1)
    scanlines = np.insert(rows, 0, row_filter, axis=1).tobytes()
    header = struct.pack(">IIBBBBB", 14, 9, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")]
    framed = [struct.pack(">I", len(body)) + kind + body + crc(kind + body) for kind, body in chunks]
    weights = np.array([0.299, 0.587, 0.114]) if channels > 1 else np.ones(1)
    opacity = samples[..., 3] / 255 if channels == 4 else 1.0
    agrees(b"\x89PNG\r\n\x1a\n" + b"".join(framed), 0.6, samples[..., : len(weights)] @ weights * opacity)


def crc(content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content))


def test_what_is_named_transparent_is_black_in_palette_gray_and_colour_images():
    gray = Image.fromarray(np.where(GRADIENT < 128, 77, GRADIENT).astype(np.uint8))
    expected = np.where(GRADIENT < 128, 0, GRADIENT)
    palette = gray.convert("P")
    index = palette.getpixel((0, 0))
    agrees(encoded(gray, "PNG", transparency=77), 0, expected)
    agrees(encoded(gray.convert("RGB"), "PNG", transparency=(77, 77, 77)), 0, expected)
    agrees(encoded(palette, "PNG", transparency=index), 0, expected)
    agrees(encoded(palette, "GIF", transparency=index), 0, expected)


def test_cmyk_files_decode_to_luminance():
    cmyk = GRAY.convert("RGB").convert("CMYK")
    agrees(encoded(cmyk, "JPEG", quality=98), 3)
    agrees(encoded(cmyk, "TIFF"), 1)


def test_a_jpeg_that_stores_rgb_is_not_taken_for_luminance_and_chrominance():
    content = encoded(PINK, "JPEG", quality=98, keep_rgb=True)
    agrees(content, 2, np.round(0.299 * 255 + 0.701 * GRADIENT))


def test_lab_tiffs_decode_to_luminance_not_to_lightness():
    to_lab = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
    lab = ImageCms.profileToProfile(GRAY.convert("RGB"), *to_lab, outputMode="LAB")
    assert lab is not None
    assert np.abs(np.asarray(lab.getchannel(0)).astype(int) - GRADIENT).mean() > 2  # they do differ
    agrees(encoded(lab, "TIFF"), 1.5)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("BMP", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"})],
)
def test_one_bit_images_become_black_and_white(file_format, options):
    expected = np.where(GRADIENT > 127, 255, 0).astype(np.uint8)
    decoded = agrees(encoded(Image.fromarray(expected).convert("1"), file_format, **options), 0, expected)
    assert decoded.bit_depth == (8 if file_format == "GIF" else 1)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [12, 16])
def test_deep_gray_images_are_scaled_by_the_range_they_use(file_format, bits):
    deep = np.round(GRADIENT / 255 * (2**bits - 1)).astype(np.uint16)
    assert agrees(encoded(Image.fromarray(deep), file_format)).bit_depth == bits


def test_deep_images_with_32_bits_are_scaled_by_what_they_hold():
    whole = GRADIENT.astype(np.int32) * 257
    assert agrees(encoded(Image.fromarray(whole), "TIFF")).bit_depth == 16
    real = (GRADIENT / np.float32(255.0) - 0.5).astype(np.float32)
    assert agrees(encoded(Image.fromarray(real), "TIFF")).bit_depth == 32
    real[0, 0], real[1, 1] = np.nan, np.inf
    agrees(encoded(Image.fromarray(real), "TIFF"))


def tiff(samples: np.ndarray, bits: int, photometric: int, *more: tuple[int, int], order: str = "<") -> bytes:
    """An uncompressed one-strip TIFF 6.0 as a device would write it; Pillow's writer inverts some of these itself."""
    packed = np.packbits(samples, axis=1) if bits == 1 else samples.astype(f"{order}u{bits // 8}")
    entries = [(256, samples.shape[1]), (257, samples.shape[0]), (258, bits), (259, 1), (262, photometric)]
    entries += [(273, 8), *more, (277, 1), (278, samples.shape[0]), (279, packed.nbytes)]
    fields = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8 + packed.nbytes)
    return start + packed.tobytes() + struct.pack(order + "H", len(entries)) + fields + struct.pack(order + "I", 0)


@pytest.mark.parametrize(("bits", "order"), [(1, "<"), (1, ">"), (8, "<"), (8, ">"), (16, "<")])
def test_tiffs_whose_zero_is_white_are_inverted_and_others_are_not(bits, order):
    shown = np.where(GRADIENT > 127, 255, 0) if bits == 1 else GRADIENT
    samples = np.round(shown / 255 * (2**bits - 1)).astype(np.uint16)
    for photometric, stored in ((1, samples), (0, 2**bits - 1 - samples)):
        assert agrees(tiff(stored, bits, photometric, order=order), 0, shown).bit_depth == bits


TURNS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda upright: upright,
    np.fliplr,
    lambda upright: np.rot90(upright, 2),
    np.flipud,
    np.transpose,
    np.rot90,
    lambda upright: np.rot90(upright, 2).T,
    lambda upright: np.rot90(upright, -1),
]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_honoured(orientation, file_format):
    upright = np.add.outer(np.arange(32) * 4, np.arange(48)).astype(np.uint8)
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation - 1](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 98}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}[file_format]
    agrees(encoded(stored, file_format, exif=exif, **options), 1.5, upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"])
def test_a_damaged_exif_block_does_not_cost_the_film(exif):
    agrees(encoded(GRAY, "JPEG", exif=exif, quality=95), 2)


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WEBP", "PNG", "MPO"])
def test_the_first_frame_of_several_is_taken_and_said_so(file_format):
    frames = [GRAY.convert("RGB"), Image.fromarray(255 - GRADIENT).convert("RGB")]
    options = {"lossless": True} if file_format == "WEBP" else {"quality": 95} if file_format == "MPO" else {}
    content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert agrees(content, 2).note == "first of several frames"


@pytest.mark.parametrize(
    "colour", [GRAY, GRAY.convert("RGB"), GRAY.convert("LA"), GRAY.convert("RGBA"), GRAY.convert("P")]
)
def test_gray_films_have_no_tint(colour):
    assert decode_bytes(encoded(colour, "PNG")).tint == 0


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("at_least", "edges"), [(None, (600, 440)), (400, (600, 440)), (220, (300, 220)), (60, (150, 110)), (1, (75, 55))]
)
def test_a_large_jpeg_is_reduced_to_no_less_than_asked(mode, at_least, edges):
    shade = np.add.outer(np.arange(440) / 4, np.arange(600) / 5).astype(np.uint8)
    decoded = decode_bytes(encoded(Image.fromarray(shade).convert(mode), "JPEG", quality=95), at_least=at_least)
    assert decoded.pixels.shape[::-1] == edges
    assert (decoded.width, decoded.height) == (600, 440)
    assert np.abs(fit_square(decoded.pixels, 50, "squash").astype(int) - fit_square(shade, 50, "squash")).max() <= 2


def test_a_reduced_film_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.new("L", (600, 440)), "JPEG", exif=exif)
    decoded = decode_bytes(content, at_least=100)
    assert decoded.pixels.shape == (150, 110)
    assert (decoded.height, decoded.width) == (600, 440)


def test_a_square_is_the_same_from_bytes_from_a_file_and_for_a_bundle(tmp_path: Path, untrained_bundle: Path):
    noise = np.random.default_rng(0).integers(0, 256, (130, 110), np.uint8).repeat(8, 0).repeat(8, 1)
    file = tmp_path / "film.jpg"
    file.write_bytes(encoded(Image.fromarray(noise), "JPEG", quality=90))
    bundle = load_bundle(untrained_bundle)
    size, fit = bundle.info.preprocessing.dataset_size, bundle.info.preprocessing.fit
    square, film = decode_square(file.read_bytes(), size, fit)
    assert (film.width, film.height) == (880, 1040)
    assert min(film.pixels.shape) >= 2 * size
    np.testing.assert_array_equal(decode_square(file, size, fit)[0], square)
    expected = fit_square(square, bundle.info.preprocessing.network_size, "squash")
    np.testing.assert_array_equal(bundle.prepare(file), expected)
    np.testing.assert_array_equal(bundle.prepare(file.read_bytes()), expected)


@pytest.mark.parametrize(("file_format", "options", "tolerance"), [*FORMATS, ("GIF", {}, 0)])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.9])
def test_a_file_cut_short_is_called_truncated(file_format, options, tolerance, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    content = encoded(noise, file_format, **options)
    with pytest.raises(DecodeError) as refused:
        decode_bytes(content[: int(len(content) * share)])
    assert refused.value.code == "truncated", refused.value


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"path,label\na.png,covid\n" * 9, "not_an_image"),
        (encoded(GRAY, "JPEG2000"), "not_an_image"),
        (encoded(GRAY, "PPM"), "not_an_image"),
        (encoded(Image.new("L", (1, 1)), "PNG"), "unsupported"),
        (encoded(Image.new("L", (1, 40)), "BMP"), "unsupported"),
    ],
)
def test_what_is_not_a_film_is_refused_with_a_stable_code(content, code):
    with pytest.raises(DecodeError) as refused:
        decode_bytes(content)
    assert refused.value.code == code


def test_a_refused_file_is_named(tmp_path: Path):
    file = tmp_path / "notes.png"
    file.write_text("not an image")
    with pytest.raises(DecodeError, match=r"notes\.png: is not an image"):
        decode_file(file)
    with pytest.raises(DecodeError, match=r"notes\.png: is not an image"):
        decode_square(file, 64, "squash")
    with pytest.raises(DecodeError, match="No such file"):
        decode_file(tmp_path / "missing.png")


@pytest.mark.real_data
def test_every_original_file_of_the_real_films_decodes(real_films: Path):
    files = [file for file in sorted((real_films / "originals").rglob("*")) if file.suffix not in ("", ".csv")]
    files = [file for file in files if file.is_file()]
    assert len(files) == 48
    for file in files:
        whole = decode_file(file)
        assert min(whole.pixels.shape) >= 200
        assert whole.pixels.std() > 10, file
        square, film = decode_square(file, 224, "squash")
        assert (film.width, film.height) == (whole.width, whole.height)
        difference = np.abs(square.astype(int) - fit_square(whole.pixels, 224, "squash")).mean()
        assert difference <= 1, f"{file}: {difference:.2f} gray levels"
        if file.suffix != ".dcm":
            with Image.open(file) as image:
                reference = np.asarray(image.convert("RGBA").convert("L"), int)
            assert np.abs(whole.pixels - reference).mean() <= 1, file


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour_keeps_its_depth_and_is_refused_where_it_would_become_black(suffix):
    deep = np.repeat(GRADIENT.astype(np.uint16)[:, :, None], 3, axis=2)
    _, whole = cv2.imencode(suffix, deep * 257)
    assert agrees(whole.tobytes()).bit_depth == 16
    _, shallow = cv2.imencode(suffix, deep * 16)  # 12 bits of the 16
    with pytest.raises(DecodeError, match=r"that use 14 bits or fewer\. Save it in gray") as raised:
        decode_bytes(shallow.tobytes())
    assert raised.value.code == "unsupported"
