"""DICOM films to 8-bit luminance."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from cxr_ray.data.decode_dicom_gray import to_gray
from cxr_ray.data.decode_dicom_kinds import check_kind, text_of, view_of
from cxr_ray.data.decode_dicom_pixels import read_samples
from cxr_ray.data.decode_image import MAX_AGE, DecodedImage, check_size, look_up, luminance_of, tint_of
from cxr_ray.errors import DecodeError

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_TAGS = (
    *("SOPClassUID", "Modality", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Data", "Descriptor")
    ),
    *("ViewPosition", "ViewCodeSequence", "PatientOrientation", "SeriesDescription", "ProtocolName"),
    *("PatientSex", "PatientAge", "PatientID"),
)
_LONG_TAGS = {"ModalityLUTSequence": 1 << 20, "VOILUTSequence": 1 << 20, "ViewCodeSequence": 1 << 16}
_LONGEST = 1 << 18  # bytes of any other element; a palette has half as many
_MAX_READS = 30_000  # pydicom makes up to three for an element or a fragment; films have some hundred of them


def decode_dicom(content: bytes, *, max_pixels: int) -> DecodedImage:
    """Decode one single-frame film.

    Gray films go through the modality LUT, the VOI LUT or window and the photometric interpretation, see
    `cxr_ray.data.decode_dicom_gray.to_gray`; colours become ITU-R BT.601 luminance.

    Args:
        content: The whole file.
        max_pixels: Refused above this, from the header.

    Raises:
        DecodeError: For objects that are no projection radiographs, several frames, layouts of pixels that no film
            has, too many pixels, a transfer syntax whose decoder is not installed, and damaged files.
    """
    syntax = UID("")
    with warnings.catch_warnings():
        # pydicom warns about values that break the standard but do not touch the pixels.
        warnings.simplefilter("ignore")
        try:
            dataset = _read(content, max_pixels)
            syntax = _syntax(dataset)
            stored = dataset.get("BitsStored")
            if not syntax.is_encapsulated and dataset.get("HighBit") and stored:
                # pydicom drops the bits above BitsStored, which in some old files hold the film.
                dataset.BitsStored = min(max(int(stored), int(dataset.HighBit) + 1), int(dataset.BitsAllocated))
            samples, photometric = read_samples(dataset, syntax)
            if stored:
                dataset.BitsStored = stored
            pixels, tint = _luminance(samples, photometric, dataset)
            return DecodedImage(
                pixels=np.ascontiguousarray(pixels),
                bit_depth=int(dataset.get("BitsStored", 0) or dataset.BitsAllocated),
                width=int(dataset.Columns),
                height=int(dataset.Rows),
                tint=tint,
                view=view_of(dataset),
                sex=text_of(dataset, "PatientSex"),
                age=_age(dataset),
                patient_id=text_of(dataset, "PatientID"),
            )
        except DecodeError:
            raise
        except Exception as error:
            # pydicom and its plug-ins raise many types on damaged files; all mean the same to the reader.
            raise _explain(error, syntax) from error


class _CountedReader(io.BytesIO):
    """A file that ends the work of reading endless small elements, which takes minutes and gigabytes."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise DecodeError("has more DICOM elements or fragments than any film", code="unsupported")
        return super().read(size)


def _read(content: bytes, max_pixels: int) -> Any:
    """The dataset, its pixels read only once its header has been found good."""
    file = _CountedReader(_inflated(content, max_pixels))
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
    for keyword in _TAGS:
        element = dataset.get_item(keyword)
        length = len(element.value or b"") if isinstance(element, RawDataElement) else 0
        if length > _LONG_TAGS.get(keyword, _LONGEST):
            raise DecodeError(f"is a damaged DICOM file ({keyword} has {length:,} bytes)")
    check_kind(dataset)
    _check_layout(dataset, len(content), max_pixels)
    # The file stands where the pixels start; where they are cut short, pydicom finds none at all.
    implicit, little = dataset.original_encoding
    rest = read_dataset(file, bool(implicit), bool(little))
    if "PixelData" not in rest:
        if "FloatPixelData" in rest or "DoubleFloatPixelData" in rest:
            raise DecodeError("stores floating-point pixels, as no film does", code="unsupported")
        raise DecodeError("is truncated: the file ends before its last pixel", code="truncated")
    dataset["PixelData"] = rest["PixelData"]
    return dataset


def _inflated(content: bytes, max_pixels: int) -> bytes:
    """The same file without the compression of its dataset (PS3.5 section A.5), as far as a film may have bytes."""
    start, syntax = _file_meta(content)
    if syntax != DeflatedExplicitVRLittleEndian:
        return content
    longest = 2 * max_pixels + (1 << 22)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    dataset = inflater.decompress(content[start:], longest)
    if inflater.unconsumed_tail:
        raise DecodeError(f"has more than the {max_pixels:,} pixels allowed", code="too_many_pixels")
    if not inflater.eof:
        raise DecodeError("is truncated: the file ends before its last pixel", code="truncated")
    plain = ExplicitVRLittleEndian.encode().ljust(len(syntax), b"\0")
    return content[:start].replace(syntax.encode(), plain) + dataset


def _file_meta(content: bytes) -> tuple[int, str]:
    """Where the dataset starts, and the transfer syntax that group 0002 names."""
    position, syntax = 132 if content[128:132] == b"DICM" else 0, ""
    while content[position : position + 2] == b"\x02\0" and position + 12 <= len(content):
        _, element, vr, length = struct.unpack_from("<HH2sH", content, position)
        value = position + 8
        if vr.decode("latin-1") in EXPLICIT_VR_LENGTH_32:
            value, length = position + 12, struct.unpack_from("<I", content, position + 8)[0]
        if element == 0x0010:
            syntax = content[value : value + length].decode("latin-1").rstrip("\0 ")
        position = value + length
    return position, syntax


def _syntax(dataset: Any) -> UID:
    """The transfer syntax; guessed, where the file does not name it, from how it is written."""
    named = dataset.file_meta.get("TransferSyntaxUID")
    if named:
        # Files that name a syntax of their device's own are mostly written in a standard one.
        return UID(str(named))
    if dataset["PixelData"].is_undefined_length:
        raise DecodeError("does not say how its pixels are compressed", code="unsupported")
    implicit, little = dataset.original_encoding
    return UID("1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2")


def _check_layout(dataset: Any, file_bytes: int, max_pixels: int) -> None:
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise DecodeError(f"has {frames} frames; a radiograph has one", code="unsupported")
    check_size(int(dataset.Columns), int(dataset.Rows), file_bytes, max_pixels)
    samples = int(dataset.get("SamplesPerPixel", 1) or 1)
    photometric = str(dataset.get("PhotometricInterpretation", "") or ("MONOCHROME2" if samples == 1 else "RGB"))
    if (samples, photometric) not in [*((1, name) for name in (*_GRAY, _PALETTE)), *((3, name) for name in _COLOUR)]:
        problem = f"has {samples} samples a pixel with the photometric interpretation {photometric}"
        raise DecodeError(problem, code="unsupported")
    allocated = int(dataset.get("BitsAllocated", 0) or 0)
    if allocated not in ((1, 8, 16) if samples == 1 else (8, 16)):
        raise DecodeError(f"stores {allocated} bits a sample; films have 8 or 16", code="unsupported")
    # What is missing has one meaning for a film, and pydicom asks for it.
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, photometric
    dataset.NumberOfFrames = 1
    for keyword, value in (("BitsStored", allocated), ("PixelRepresentation", 0), ("PlanarConfiguration", 0)):
        if dataset.get(keyword) in (None, ""):
            setattr(dataset, keyword, value)


def _luminance(samples: np.ndarray, photometric: str, dataset: Any) -> tuple[np.ndarray, float]:
    """uint8, (H, W), and the tint."""
    if photometric in _GRAY:
        return to_gray(samples, dataset, inverted=photometric == "MONOCHROME1"), 0.0
    if photometric == _PALETTE:
        return _from_palette(samples, dataset)
    if samples.dtype == np.uint16:
        top = (1 << int(dataset.BitsStored)) - 1
        table = ((np.arange(65536) & top) * (255.0 / top)).round().astype(np.uint8)
        samples = np.stack([look_up(table, samples[..., k]) for k in range(3)], axis=-1)
    small = np.ascontiguousarray(samples[:: max(1, len(samples) // 64), :: max(1, samples.shape[1] // 64)])
    if photometric.startswith("YBR"):
        return samples[..., 0], tint_of(np.asarray(Image.fromarray(small, "YCbCr").convert("RGB")))
    return luminance_of(np.ascontiguousarray(samples)), tint_of(small)


def _from_palette(samples: np.ndarray, dataset: Any) -> tuple[np.ndarray, float]:
    values = np.arange(1 << 8 * samples.itemsize, dtype=samples.dtype)
    colours = apply_color_lut(values, dataset)
    rgb = (colours >> 8 if colours.dtype == np.uint16 else colours).astype(np.uint8)
    table = luminance_of(rgb[None])[0]
    return look_up(table, samples), tint_of(
        rgb[samples[:: max(1, len(samples) // 64), :: max(1, samples.shape[1] // 64)]]
    )


def _explain(error: Exception, syntax: UID) -> DecodeError:
    text = " ".join(str(error).split())
    # pydicom names the plug-ins that tried: a damaged film is what the proper ones could not read, either.
    tried = re.search(r"\b(pylibjpeg|pydicom|pillow): ", text)
    if not tried and "missing dependencies" in text:
        return DecodeError(
            f"is compressed with transfer syntax {syntax.name}, whose decoder is not installed",
            next_step="Install it with: pip install 'cxr_ray[dicom]'",
            code="unsupported",
        )
    words = ("less than", "bytes of pixel data", "not enough", "truncated")
    if any(word in text for word in words) or isinstance(error, EOFError):
        return DecodeError("is truncated: the file ends before its last pixel", code="truncated")
    return DecodeError(f"is a damaged DICOM file ({text or type(error).__name__})")


def _age(dataset: Any) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", text_of(dataset, "PatientAge") or "")
    if not match:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    return years if years <= MAX_AGE else None  # 999Y is how some devices write that they do not know
