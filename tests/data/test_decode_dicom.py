"""DICOM films of every transfer syntax, depth and window; and objects that are no films, refused by name."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from cxr_ray.data.decode import decode_bytes, decode_file
from cxr_ray.data.views import is_lateral
from cxr_ray.errors import DecodeError

GRADIENT = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (32, 1))
CONTRAST = GRADIENT[:, ::-1].copy()


def dicom(
    values: np.ndarray,
    *,
    syntax: UID = ExplicitVRLittleEndian,
    photometric: str = "MONOCHROME2",
    bits_stored: int | None = None,
    stream: bytes | None = None,
    **tags,
) -> bytes:
    """A film of values (H, W) or (H, W, 3), or of a stream that is compressed already."""
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    film = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=little)
    film.SOPClassUID, film.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3"
    film.SamplesPerPixel, film.PhotometricInterpretation = values.shape[2] if values.ndim == 3 else 1, photometric
    film.Rows, film.Columns = values.shape[:2]
    film.BitsAllocated = values.dtype.itemsize * 8
    film.BitsStored = bits_stored or film.BitsAllocated
    film.HighBit, film.PixelRepresentation = film.BitsStored - 1, int(values.dtype.kind == "i")
    if values.ndim == 3:
        film.PlanarConfiguration = 0
    film.PixelData = values.astype(values.dtype.newbyteorder("<" if little else ">")).tobytes()
    film["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(film, name, value)
    if stream is not None:
        film.PixelData = encapsulate([stream])
        film["PixelData"].VR, film["PixelData"].is_undefined_length = "OB", True
        meta.TransferSyntaxUID = syntax
    elif syntax.is_encapsulated:
        film.compress(syntax, values)
    return saved(film)


def saved(film: Dataset) -> bytes:
    sink = io.BytesIO()
    film.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def shipped(name: str, **tags) -> pydicom.FileDataset:
    """A file that comes with pydicom, as a radiograph."""
    film = pydicom.dcmread(str(get_testdata_file(name)))
    film.SOPClassUID, film.Modality = ComputedRadiographyImageStorage, "CR"
    for keyword, value in tags.items():
        setattr(film, keyword, value)
    return film


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


def agrees(content: bytes, tolerance: float = 1.0, expected: np.ndarray = GRADIENT) -> None:
    decoded = decode_bytes(content)
    assert decoded.pixels.dtype == np.uint8
    assert (decoded.height, decoded.width) == decoded.pixels.shape == expected.shape
    assert np.abs(decoded.pixels.astype(int) - expected).mean() <= tolerance


def refused(content: bytes, words: str, code: str = "unsupported") -> None:
    with pytest.raises(DecodeError, match=words) as refusal:
        decode_bytes(content)
    assert refusal.value.code == code


NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@pytest.mark.parametrize("syntax", [*NATIVE, RLELossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_every_transfer_syntax_keeps_the_gray_levels(syntax, dtype):
    shift = 900 if dtype == np.int16 else 0
    stored = (GRADIENT.astype(dtype) * (1 if dtype == np.uint8 else 16) - shift).astype(dtype)
    agrees(dicom(stored, syntax=syntax), 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_every_depth_keeps_the_gray_levels(bits):
    dtype = np.uint8 if bits == 8 else np.uint16
    stored = np.round(GRADIENT / 255 * (2**bits - 1)).astype(dtype)
    agrees(dicom(stored, bits_stored=bits), 0)
    assert decode_bytes(dicom(stored, bits_stored=bits)).bit_depth == bits
    agrees(dicom(stored, bits_stored=bits, syntax=JPEGLosslessSV1, stream=lossless_jpeg(stored, bits)), 0)


def test_jpeg_baseline_decodes():
    sink = io.BytesIO()
    Image.fromarray(GRADIENT).save(sink, "JPEG", quality=95)
    agrees(dicom(GRADIENT, syntax=JPEGBaseline8Bit, stream=sink.getvalue(), WindowCenter=128, WindowWidth=256), 2)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"])
def test_lossless_syntaxes_of_other_encoders_agree_with_the_plain_file(name):
    plain = decode_bytes(saved(shipped("MR_small.dcm"))).pixels
    assert plain.std() > 30
    np.testing.assert_array_equal(decode_bytes(saved(shipped(name))).pixels, plain)


def test_twelve_bit_jpeg_agrees_with_jpeg_2000_of_the_same_film():
    extended = decode_bytes(saved(shipped("JPGExtended.dcm"))).pixels
    wavelet = decode_bytes(saved(shipped("JPEG2000.dcm"))).pixels
    assert np.corrcoef(extended.ravel(), wavelet.ravel())[0, 1] > 0.9


# Bars from top to bottom: red, green, blue, black, grays and white, by BT.601.
BARS = {5: 76, 25: 150, 45: 29, 55: 0, 75: 128, 95: 255}


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jls_lossy_line.dcm",
    ],
)
def test_colours_become_luminance_in_every_colour_space(name):
    film = shipped(name)
    decoded = decode_bytes(saved(film))
    reference = pydicom.pixels.pixel_array(film).astype(float)  # type: ignore[attr-defined]
    reference = reference / (2**film.BitsStored - 1) * 255
    if film.PhotometricInterpretation.startswith("YBR"):
        reference = np.asarray(shipped("SC_rgb_rle.dcm").pixel_array, float)
    expected = reference @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decoded.pixels - expected).mean() <= 2
    assert decoded.tint > 0.3


def test_palette_colour_decodes_to_its_colours_not_its_indices():
    entries = (255 - np.arange(256)).astype("<u2") * 257
    tags = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
    content = dicom(CONTRAST[:, ::-1] ^ 255, photometric="PALETTE COLOR", **tags)
    agrees(content)
    assert decode_bytes(content).tint == 0


def test_monochrome1_is_inverted():
    agrees(dicom(255 - GRADIENT, photometric="MONOCHROME1"))


def test_bits_above_those_stored_are_an_overlay_and_not_seen():
    stored = GRADIENT.astype(np.uint16) * 16
    stored[::3] |= 0xF000
    film = pydicom.dcmread(io.BytesIO(dicom(stored, bits_stored=12)))
    agrees(saved(film), 0)


@pytest.mark.parametrize(
    ("tags", "tolerance"),
    [
        ({"WindowCenter": 1510, "WindowWidth": 1021}, 2),
        ({"WindowCenter": [1510, 50], "WindowWidth": [1021, 20]}, 2),
        ({"WindowCenter": 1510, "WindowWidth": 1020, "VOILUTFunction": "LINEAR_EXACT"}, 2),
        ({"WindowCenter": 1510.5, "WindowWidth": 1021, "VOILUTFunction": "LINEAR"}, 2),
    ],
)
def test_the_first_window_is_applied(tags, tolerance):
    stored = GRADIENT.astype(np.uint16) * 4 + 1000
    agrees(dicom(stored, bits_stored=12, **tags), tolerance)


def test_a_narrow_window_clips_what_lies_outside():
    pixels = decode_bytes(dicom(GRADIENT, WindowCenter=128, WindowWidth=51)).pixels
    assert (pixels[GRADIENT <= 102] == 0).all()
    assert (pixels[GRADIENT >= 153] == 255).all()
    assert decode_bytes(dicom(GRADIENT, WindowCenter=100, WindowWidth=1)).pixels.tolist() == (
        np.where(GRADIENT > 99, 255, 0).tolist()
    )


def test_a_sigmoid_window_is_applied():
    expected = 255 / (1 + np.exp(-4 * (GRADIENT.astype(float) - 100) / 80))
    content = dicom(GRADIENT, WindowCenter=100, WindowWidth=80, VOILUTFunction="SIGMOID")
    agrees(content, 0.6, expected)


def test_a_window_is_applied_after_the_modality_rescale():
    stored = GRADIENT.astype(np.uint16) * 4
    tags = {"RescaleSlope": 0.25, "RescaleIntercept": -100, "WindowCenter": 27.5, "WindowWidth": 256}
    agrees(dicom(stored, bits_stored=12, **tags), 2)


def test_signed_pixels_with_a_window_decode():
    agrees(dicom(GRADIENT.astype(np.int16) - 128, bits_stored=16, WindowCenter=0, WindowWidth=256), 2)
    agrees(dicom((GRADIENT.astype(np.int16) - 128) & 0xFFF, bits_stored=12, PixelRepresentation=1), 0)


def test_a_film_without_a_window_is_stretched_over_its_values():
    agrees(dicom((GRADIENT.astype(np.uint16) * 9 + 77).astype(np.uint16), bits_stored=12))


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": None},
        {"WindowCenter": 40},
        {"WindowCenter": 40, "WindowWidth": 0},
        {"RescaleSlope": None},
        {"RescaleSlope": 2.0},
        {"VOILUTSequence": []},
    ],
)
def test_empty_or_impossible_windows_are_read_as_none(tags):
    agrees(dicom((GRADIENT.astype(np.uint16) * 9 + 77).astype(np.uint16), bits_stored=12, **tags))


def table(entries: np.ndarray, first: int, bits: int, **tags) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def test_a_voi_table_goes_before_a_window():
    inverse = table(np.arange(256)[::-1] * 16, 1000, 12)
    stored = (255 - GRADIENT).astype(np.uint16) + 1000
    agrees(dicom(stored, bits_stored=12, VOILUTSequence=[inverse], WindowCenter=5, WindowWidth=3), 1)


def test_a_window_behind_a_modality_table_keeps_the_range_of_the_table():
    modality = table(np.arange(4096) * 16, 0, 16, ModalityLUTType="US")
    stored = GRADIENT.astype(np.uint16) * 16
    agrees(dicom(stored, bits_stored=12, ModalityLUTSequence=[modality], WindowCenter=32768, WindowWidth=65536))


def test_a_window_behind_a_falling_modality_rescale_is_not_inverted():
    stored = (255 - GRADIENT).astype(np.uint16) * 16
    agrees(dicom(stored, bits_stored=12, RescaleSlope=-1, RescaleIntercept=0, WindowCenter=-2048, WindowWidth=4096))


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
def test_padding_is_black_and_leaves_the_contrast_to_the_film(photometric, value, tags, window):
    film = 255 - GRADIENT if photometric == "MONOCHROME1" else GRADIENT
    stored = (film.astype(np.uint16) * 4 + 1000).astype(np.uint16)
    stored[:, :10] = value
    pixels = decode_bytes(dicom(stored, photometric=photometric, bits_stored=12, **tags, **window)).pixels
    assert (pixels[:, :10] == 0).all()
    shown = GRADIENT[:, 10:].astype(float)
    expected = shown if window else (shown - shown.min()) / (shown.max() - shown.min()) * 255
    assert np.abs(pixels[:, 10:] - expected).max() <= 2


def test_padding_of_signed_pixels_may_be_written_unsigned():
    stored = GRADIENT.astype(np.int16)
    stored[:, :10] = -2000
    film = pydicom.dcmread(io.BytesIO(dicom(stored)))
    film.add_new("PixelPaddingValue", "US", 65536 - 2000)
    pixels = decode_bytes(saved(film)).pixels
    assert (pixels[:, :10] == 0).all()
    assert pixels[:, 10:].std() > 60


def test_padding_that_no_pixel_can_have_hides_nothing():
    agrees(dicom(GRADIENT, PixelPaddingValue=65535))
    assert (decode_bytes(dicom(np.full((32, 48), 7, np.uint8), PixelPaddingValue=7)).pixels == 0).all()


def test_damaged_pixels_are_called_damaged_though_a_decoder_is_installed():
    refused(saved(shipped("JPEG-lossy.dcm")), r"is a damaged DICOM file .*misplaced marker", "not_an_image")
    content = dicom(GRADIENT, syntax=RLELossless)
    refused(content.replace(b"\x01\0\0\0\x40\0\0\0", b"\xff" * 8), "is a damaged DICOM file", "not_an_image")


def test_a_missing_decoder_is_named_with_what_to_install(monkeypatch):
    from pydicom.pixels.decoders import pylibjpeg

    monkeypatch.setattr(pylibjpeg, "is_available", lambda uid: False)
    content = dicom(GRADIENT, syntax=JPEGLosslessSV1, stream=lossless_jpeg(GRADIENT, 8))
    monkeypatch.setattr(pydicom.pixels.get_decoder(JPEGLosslessSV1), "_available", {})  # type: ignore[attr-defined]
    with pytest.raises(DecodeError, match="decoder is not installed") as refusal:
        decode_bytes(content)
    assert "cxr_ray[dicom]" in str(refusal.value)


def test_header_fields_reach_the_decoded_image():
    content = dicom(GRADIENT, ViewPosition="PA", PatientSex="F", PatientAge="006M", PatientID="p1")
    decoded = decode_bytes(content)
    assert (decoded.view, decoded.sex, decoded.age, decoded.patient_id) == ("PA", "F", 0.5, "p1")
    assert decode_bytes(dicom(GRADIENT, PatientAge="999Y")).age is None


def view_code(meaning: str) -> Dataset:
    code = Dataset()
    code.CodeMeaning = meaning
    return code


@pytest.mark.parametrize(
    ("tags", "lateral"),
    [
        ({"ViewPosition": "LL"}, True),
        ({"ViewPosition": "PA", "SeriesDescription": "chest lateral"}, False),
        ({"SeriesDescription": "Chest LAT."}, True),
        ({"SeriesDescription": "Thorax", "ProtocolName": "CHEST, LATERAL"}, True),
        ({"SeriesDescription": "view: LATERAL"}, True),
        ({"SeriesDescription": "Thorax P.A. / LAT"}, False),
        ({"SeriesDescription": "Chest PA and lateral"}, False),
        ({"SeriesDescription": "CHEST 2 VIEWS LAT"}, False),
        ({"SeriesDescription": "bilateral pleural effusion, relatives informed"}, False),
        ({"PatientOrientation": ["A", "F"]}, True),
        ({"PatientOrientation": ["P", "F"], "SeriesDescription": "Chest"}, True),
        ({"PatientOrientation": ["L", "F"], "SeriesDescription": "Chest lateral"}, False),
        ({"ViewCodeSequence": [view_code("left lateral")]}, True),
        ({"ViewCodeSequence": [view_code("postero-anterior")], "SeriesDescription": "lateral"}, False),
        ({}, False),
    ],
)
def test_a_lateral_view_is_known_from_any_field_that_leaves_no_doubt(tags, lateral):
    assert is_lateral(decode_bytes(dicom(GRADIENT, **tags)).view) is lateral


@pytest.mark.parametrize("syntax", NATIVE[:3], ids=lambda syntax: syntax.name)
def test_files_without_a_preamble_decode(syntax):
    content = dicom(GRADIENT, syntax=syntax)
    film = pydicom.dcmread(io.BytesIO(content))
    agrees(content[132:])
    bare = content[132 + 12 + film.file_meta.FileMetaInformationGroupLength :]
    agrees(bare)


def test_a_compressed_film_that_does_not_name_its_syntax_is_refused():
    film = pydicom.dcmread(io.BytesIO(dicom(GRADIENT, syntax=RLELossless)))
    bare = saved(film)[132 + 12 + film.file_meta.FileMetaInformationGroupLength :]
    refused(bare, "does not say how its pixels are compressed")


def test_a_secondary_capture_and_an_object_of_no_stated_kind_are_taken():
    film = pydicom.dcmread(io.BytesIO(dicom(GRADIENT)))
    film.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    agrees(saved(film))
    del film.SOPClassUID
    agrees(saved(film))


def test_several_frames_are_refused_by_name():
    film = pydicom.dcmread(io.BytesIO(dicom(GRADIENT)))
    film.PixelData, film.NumberOfFrames = film.PixelData * 2, 2
    refused(saved(film), "2 frames")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CT_small.dcm", "CT Image Storage, not a radiograph"),
        ("MR_small.dcm", "MR Image Storage"),
        ("examples_palette.dcm", "Ultrasound Image Storage"),
        ("examples_ybr_color.dcm", "Ultrasound Multi-frame Image Storage"),
        ("liver_1frame.dcm", "Segmentation Storage"),
        ("rtdose.dcm", "RT Dose Storage"),
        ("JPEG2000.dcm", "a nuclear medicine image"),
        ("test-SR.dcm", r"without an image \(Comprehensive SR Storage\)"),
        ("rtplan.dcm", r"without an image \(RT Plan Storage\)"),
        ("rtstruct.dcm", r"without an image \(RT Structure Set Storage\)"),
        ("waveform_ecg.dcm", r"without an image \(12-lead ECG Waveform Storage\)"),
    ],
)
def test_what_is_no_radiograph_is_refused_by_name(name, words):
    with pytest.raises(DecodeError, match=words) as refusal:
        decode_file(str(get_testdata_file(name)))
    assert refusal.value.code == "unsupported"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF Storage"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State Storage"),
    ],
)
def test_documents_and_presentation_states_are_refused_by_name(kind, name):
    film = pydicom.dcmread(io.BytesIO(dicom(GRADIENT)))
    film.SOPClassUID = UID(kind)
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(film, keyword)
    refused(saved(film), rf"without an image \({name}\)")


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "PT"])
def test_secondary_captures_of_other_modalities_are_refused_by_name(modality):
    film = pydicom.dcmread(io.BytesIO(dicom(GRADIENT, Modality=modality)))
    film.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    refused(saved(film), rf"is an? .*\(DICOM modality {modality}\), not a radiograph")


def test_layouts_no_film_has_are_refused_by_name():
    refused(dicom(GRADIENT.astype(np.uint32)), "stores 32 bits")
    refused(dicom(GRADIENT, photometric="HSV"), "photometric interpretation HSV")
    film = pydicom.dcmread(io.BytesIO(dicom(GRADIENT)))
    del film.PixelData
    film.FloatPixelData = GRADIENT.astype(np.float32).tobytes()
    refused(saved(film), "floating-point")


@pytest.mark.parametrize("syntax", [*NATIVE, RLELossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_a_film_cut_short_is_called_truncated(syntax):
    noise = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)
    content = dicom(noise, syntax=syntax)
    for kept in (len(content) - 200, len(content) - 1000):
        with pytest.raises(DecodeError) as refusal:
            decode_bytes(content[:kept])
        assert refusal.value.code == "truncated", refusal.value


def test_a_header_cut_short_is_refused(tmp_path: Path):
    refused(dicom(GRADIENT)[:200], "without an image")
    refused(dicom(GRADIENT, Rows=1), "too small for a film")


@pytest.mark.parametrize(("low_bits", "steep"), [(0, False), (1, True)])
def test_samples_that_lie_in_the_upper_bits_are_read_there_unless_the_lower_ones_are_used(low_bits, steep):
    ramp = np.tile(np.linspace(0, 4095, 64).round().astype(np.uint16), (32, 1))
    upper = decode_bytes(dicom((ramp << 4) | low_bits, bits_stored=12, HighBit=15)).pixels
    plain = decode_bytes(dicom(ramp, bits_stored=12)).pixels
    assert np.array_equal(upper, plain) is not steep


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_table_that_claims_more_bits_than_it_fills_does_not_blacken_the_film_in_either_order_of_bytes(syntax):
    order = "<u2" if syntax == ExplicitVRLittleEndian else ">u2"
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table["LUTDescriptor"].VR = "US"
    table.add_new("LUTData", "OW", np.arange(4096, dtype=order).tobytes())
    ramp = np.tile(np.linspace(0, 4095, 64).round().astype(np.uint16), (32, 1))
    pixels = decode_bytes(dicom(ramp, syntax=syntax, bits_stored=12, VOILUTSequence=[table])).pixels
    np.testing.assert_allclose(pixels, np.round(ramp / 4095 * 255), atol=1)


@pytest.mark.parametrize(
    ("view", "lateral"),
    [
        *((view, True) for view in ("Left Lateral View", "LATERAL LEFT", "lateral (L)", "L-LATERAL", "XTABLE LATERAL")),
        *(
            (view, False)
            for view in ("PA", "AP", "LATERAL DECUBITUS", "PA AND LATERAL", "OBLIQUE LAT", "PLATE 2", None)
        ),
    ],
)
def test_a_lateral_view_is_told_by_its_words(view, lateral):
    assert is_lateral(view) is lateral
