"""One suite over every format: what goes in comes out as 8-bit luminance, or is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian, RLELossless

from cxr_ray.data.decode import decode_bytes, decode_file
from cxr_ray.errors import DecodeError

GRADIENT = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (32, 1))


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, file_format, **options)
    return sink.getvalue()


def dicom(
    values: np.ndarray, *, photometric: str = "MONOCHROME2", bits_stored: int | None = None, compress=None, **tags
) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    film = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3"
    film.Rows, film.Columns = values.shape[-2:]
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, photometric
    film.BitsAllocated = values.dtype.itemsize * 8
    film.BitsStored = bits_stored or film.BitsAllocated
    film.HighBit, film.PixelRepresentation = film.BitsStored - 1, int(values.dtype.kind == "i")
    film.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(film, name, value)
    if compress:
        film.compress(compress, values, encoding_plugin="pydicom")
    sink = io.BytesIO()
    film.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def agrees(content: bytes, tolerance: float = 1.0) -> None:
    pixels = decode_bytes(content).pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == GRADIENT.shape
    assert np.abs(pixels.astype(int) - GRADIENT).mean() <= tolerance


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 1),
        ("JPEG", {"quality": 95}, 2),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_gray_and_colour_files_of_every_format_decode_to_their_luminance(file_format, options, tolerance, mode):
    agrees(encoded(Image.fromarray(GRADIENT).convert(mode), file_format, **options), tolerance)


def test_a_palette_image_decodes_to_its_colours_not_its_indices():
    image = Image.fromarray(255 - GRADIENT)
    palette = Image.new("P", image.size)
    palette.putdata((255 - GRADIENT).ravel().tolist())
    palette.putpalette([value for index in range(256) for value in [255 - index] * 3])
    agrees(encoded(palette, "PNG"), 0)


def test_transparency_lies_over_black():
    rgba = Image.merge("RGBA", [Image.new("L", (48, 32), 255)] * 3 + [Image.fromarray(GRADIENT)])
    agrees(encoded(rgba, "PNG"))


def test_cmyk_jpeg_decodes_to_luminance():
    agrees(encoded(Image.fromarray(GRADIENT).convert("RGB").convert("CMYK"), "JPEG", quality=98), 3)


def test_one_bit_images_become_black_and_white():
    image = Image.fromarray(np.where(GRADIENT > 127, 255, 0).astype(np.uint8)).convert("1")
    decoded = decode_bytes(encoded(image, "PNG"))
    assert set(np.unique(decoded.pixels)) == {0, 255}
    assert decoded.bit_depth == 1


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [12, 16])
def test_deep_gray_images_are_scaled_by_the_range_they_use(file_format, bits):
    deep = np.round(GRADIENT / 255 * (2**bits - 1)).astype(np.uint16)
    content = encoded(Image.fromarray(deep), file_format)
    agrees(content)
    assert decode_bytes(content).bit_depth == bits


def tiff(samples: np.ndarray, bits: int, photometric: int) -> bytes:
    """An uncompressed one-strip TIFF 6.0 as a device would write it; Pillow's writer inverts some of these itself."""
    packed = np.packbits(samples, axis=1) if bits == 1 else samples.astype(f"<u{bits // 8}")
    entries = [(256, samples.shape[1]), (257, samples.shape[0]), (258, bits), (259, 1), (262, photometric)]
    entries += [(273, 8), (277, 1), (278, samples.shape[0]), (279, packed.nbytes)]
    fields = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    start = struct.pack("<2sHI", b"II", 42, 8 + packed.nbytes)
    return start + packed.tobytes() + struct.pack("<H", len(entries)) + fields + struct.pack("<I", 0)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_tiffs_whose_zero_is_white_are_inverted_and_others_are_not(bits):
    shown = np.where(GRADIENT > 127, 255, 0) if bits == 1 else GRADIENT
    samples = np.round(shown / 255 * (2**bits - 1)).astype(np.uint16)
    for photometric, stored in ((1, samples), (0, 2**bits - 1 - samples)):
        decoded = decode_bytes(tiff(stored, bits, photometric))
        np.testing.assert_array_equal(decoded.pixels, shown)
        assert decoded.bit_depth == bits


def test_exif_rotation_is_honoured():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    lying = Image.fromarray(GRADIENT).transpose(Image.Transpose.ROTATE_90)
    agrees(encoded(lying, "JPEG", exif=exif, quality=95), 2)


def test_the_first_frame_of_an_animation_is_taken_and_said_so():
    frames = [Image.fromarray(GRADIENT), Image.fromarray(255 - GRADIENT)]
    content = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    agrees(content, 0)
    assert decode_bytes(content).note == "first of 2 frames"


def test_tint_is_zero_for_gray_and_positive_for_coloured_films():
    gray = Image.fromarray(GRADIENT).convert("RGB")
    pink = Image.merge("RGB", [Image.new("L", (48, 32), 255), Image.fromarray(GRADIENT), Image.fromarray(GRADIENT)])
    assert decode_bytes(encoded(gray, "PNG")).tint == 0
    assert decode_bytes(encoded(pink, "PNG")).tint > 0.3


def test_dicom_monochrome2_decodes_bone_bright():
    agrees(dicom(GRADIENT))


def test_dicom_monochrome1_is_inverted():
    agrees(dicom(255 - GRADIENT, photometric="MONOCHROME1"))


def test_dicom_window_is_applied():
    deep = (GRADIENT.astype(np.uint16) * 4 + 1000).astype(np.uint16)
    agrees(dicom(deep, bits_stored=12, WindowCenter=1510, WindowWidth=1021), 2)


def test_dicom_window_is_applied_after_the_modality_rescale():
    stored = (GRADIENT.astype(np.uint16) * 4).astype(np.uint16)
    tags = {"RescaleSlope": 0.25, "RescaleIntercept": -100, "WindowCenter": 27.5, "WindowWidth": 256}
    agrees(dicom(stored, bits_stored=12, **tags), 2)


def test_dicom_signed_pixels_with_a_window_decode():
    signed = (GRADIENT.astype(np.int16) - 128).astype(np.int16)
    agrees(dicom(signed, bits_stored=16, WindowCenter=0, WindowWidth=256), 2)


def test_dicom_without_a_window_is_stretched_over_its_values():
    agrees(dicom((GRADIENT.astype(np.uint16) * 9 + 77).astype(np.uint16), bits_stored=12))


@pytest.mark.parametrize(
    "tags",
    [{"WindowCenter": None}, {"WindowCenter": 40}, {"WindowCenter": 40, "WindowWidth": 0}, {"RescaleSlope": None}],
)
def test_dicom_with_empty_or_impossible_windows_is_read_as_without(tags):
    agrees(dicom((GRADIENT.astype(np.uint16) * 9 + 77).astype(np.uint16), bits_stored=12, **tags))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (0, {"PixelPaddingValue": 0}),
        (4000, {"PixelPaddingValue": 4000}),
        (4000, {"PixelPaddingValue": 3990, "PixelPaddingRangeLimit": 4095}),
        (5, {"PixelPaddingValue": 10, "PixelPaddingRangeLimit": 0}),
    ],
)
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1510, "WindowWidth": 1021}])
def test_dicom_padding_is_black_and_leaves_the_contrast_to_the_film(photometric, value, tags, window):
    film = 255 - GRADIENT if photometric == "MONOCHROME1" else GRADIENT
    stored = (film.astype(np.uint16) * 4 + 1000).astype(np.uint16)
    stored[:, :10] = value
    pixels = decode_bytes(dicom(stored, photometric=photometric, bits_stored=12, **tags, **window)).pixels
    assert (pixels[:, :10] == 0).all()
    shown = GRADIENT[:, 10:].astype(float)
    expected = shown if window else (shown - shown.min()) / (shown.max() - shown.min()) * 255
    assert np.abs(pixels[:, 10:] - expected).max() <= 2


def test_dicom_padding_of_signed_pixels_may_be_written_unsigned():
    stored = GRADIENT.astype(np.int16)
    stored[:, :10] = -2000
    film = pydicom.dcmread(io.BytesIO(dicom(stored)))
    film.add_new("PixelPaddingValue", "US", 65536 - 2000)
    sink = io.BytesIO()
    film.save_as(sink)
    pixels = decode_bytes(sink.getvalue()).pixels
    assert (pixels[:, :10] == 0).all()
    assert pixels[:, 10:].std() > 60


def test_dicom_padding_that_no_pixel_can_have_hides_nothing():
    agrees(dicom(GRADIENT, PixelPaddingValue=65535))
    assert (decode_bytes(dicom(np.full((32, 48), 7, np.uint8), PixelPaddingValue=7)).pixels == 0).all()


def test_dicom_window_behind_a_modality_table_keeps_the_range_of_the_table():
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.add_new("LUTData", "OW", (np.arange(4096) * 16).astype("<u2").tobytes())
    stored = GRADIENT.astype(np.uint16) * 16
    agrees(dicom(stored, bits_stored=12, ModalityLUTSequence=[table], WindowCenter=32768, WindowWidth=65536))


def test_dicom_window_behind_a_falling_modality_rescale_is_not_inverted():
    stored = (255 - GRADIENT).astype(np.uint16) * 16
    agrees(dicom(stored, bits_stored=12, RescaleSlope=-1, RescaleIntercept=0, WindowCenter=-2048, WindowWidth=4096))


def test_dicom_that_an_installed_decoder_refuses_is_damaged_not_undecodable():
    with pytest.raises(DecodeError, match=r"is a damaged DICOM file .*misplaced marker") as refused:
        decode_file(str(get_testdata_file("JPEG-lossy.dcm")))
    assert refused.value.next_step is None
    with pytest.raises(DecodeError, match="is a damaged DICOM file"):
        decode_bytes(dicom(GRADIENT, compress=RLELossless).replace(b"\x01\0\0\0\x40\0\0\0", b"\xff" * 8))


def test_dicom_rle_decodes():
    agrees(dicom(GRADIENT, compress=RLELossless))


def test_dicom_header_fields_reach_the_decoded_image():
    content = dicom(GRADIENT, ViewPosition="PA", PatientSex="F", PatientAge="006M", PatientID="p1")
    decoded = decode_bytes(content)
    assert (decoded.view, decoded.sex, decoded.age, decoded.patient_id) == ("PA", "F", 0.5, "p1")
    assert decode_bytes(dicom(GRADIENT, PatientAge="999Y")).age is None


def test_dicom_with_several_frames_is_refused_by_name():
    content = dicom(np.stack([GRADIENT, GRADIENT]), NumberOfFrames=2)
    with pytest.raises(DecodeError, match="2 frames"):
        decode_bytes(content)


def test_dicom_without_an_image_is_refused_by_name():
    film = pydicom.dcmread(io.BytesIO(dicom(GRADIENT)))
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(film, keyword)
    sink = io.BytesIO()
    film.save_as(sink)
    with pytest.raises(DecodeError, match="without an image"):
        decode_bytes(sink.getvalue())


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"path,label\na.png,covid\n" * 9, "not_an_image"),
        (encoded(Image.fromarray(GRADIENT), "PNG")[:-40], "truncated"),
        (encoded(Image.fromarray(GRADIENT), "JPEG")[:300], "not_an_image"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)), "JPEG")[:-900],
            "truncated",
        ),
        (dicom(GRADIENT)[:-200], "truncated"),
        (dicom(GRADIENT)[:200], "unsupported"),
        (png_header(50_000, 50_000), "too_many_pixels"),
        (dicom(GRADIENT, Rows=60000, Columns=60000), "too_many_pixels"),
        (encoded(Image.new("L", (1, 1)), "PNG"), "unsupported"),
        (dicom(GRADIENT, Rows=1), "unsupported"),
        (encoded(Image.fromarray(GRADIENT), "GIF"), "not_an_image"),
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
    with pytest.raises(DecodeError, match="No such file"):
        decode_file(tmp_path / "missing.png")


@pytest.mark.real_data
def test_every_original_file_of_the_real_films_decodes(real_films: Path):
    files = [file for file in sorted((real_films / "originals").rglob("*")) if file.suffix not in ("", ".csv")]
    files = [file for file in files if file.is_file()]
    assert len(files) == 48
    for file in files:
        pixels = decode_file(file).pixels
        assert min(pixels.shape) >= 200
        assert pixels.std() > 10, file
