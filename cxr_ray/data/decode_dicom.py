"""DICOM films to 8-bit luminance: modality LUT, VOI LUT or window, photometric interpretation."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np

from cxr_ray.errors import DecodeError

MAX_AGE = 150  # years
_UNCOMPRESSED = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
}


def is_dicom(content: bytes) -> bool:
    """Whether the bytes carry the DICOM preamble (PS3.10 section 7.1)."""
    return content[128:132] == b"DICM"


def decode_dicom(content: bytes, *, max_pixels: int) -> dict[str, Any]:
    """Decode one single-frame DICOM film into the fields of `DecodedImage`.

    The stored values pass the modality LUT and the VOI LUT or window (PS3.3 C.11.1, C.11.2); a film without
    either is scaled from its smallest to its largest value. MONOCHROME1 is inverted so that bone is bright.
    Pixel padding (PS3.3 C.7.5.1.1.2) counts for nothing and is black.

    Raises:
        DecodeError: For objects without pixels, several frames, colour layouts other than gray or RGB,
            too many pixels, or a transfer syntax whose decoder is not installed.
    """
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    with warnings.catch_warnings():
        # pydicom warns about values that break the standard but do not touch the pixels.
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
            _check_header(header, max_pixels)
            dataset = pydicom.dcmread(io.BytesIO(content))
            if "PixelData" not in dataset:
                raise DecodeError("is a DICOM object without an image", code="unsupported")
            values = dataset.pixel_array
            photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
            bit_depth = int(dataset.get("BitsStored", 8))
            _drop_empty_transforms(dataset)
            if values.ndim == 3:
                pixels = _luminance(_full_range(values.astype(np.float32), bit_depth))
            else:
                padding = _padding(values, dataset)
                has_window = "WindowCenter" in dataset or "VOILUTSequence" in dataset
                values = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
                pixels = _stretch(np.asarray(values, np.float32), dataset, has_window, ~padding)
                if photometric == "MONOCHROME1":
                    pixels = 255 - pixels
                pixels[padding] = 0
            tags = {
                "view": _text(header, "ViewPosition"),
                "sex": _text(header, "PatientSex"),
                "age": _age(header),
                "patient_id": _text(header, "PatientID"),
            }
        except DecodeError:
            raise
        except Exception as error:
            # pydicom and its plug-ins raise many types on damaged files; all mean the same to the reader.
            raise _explain(error, content) from error
    return {"pixels": np.ascontiguousarray(pixels), "bit_depth": bit_depth, **tags}


def _check_header(header: Any, max_pixels: int) -> None:
    if "Rows" not in header or "Columns" not in header:
        kind = str(header.get("SOPClassUID", "unknown"))
        raise DecodeError(f"is a DICOM object without an image (SOP class {kind})", code="unsupported")
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise DecodeError(f"has {frames} frames; a radiograph has one", code="unsupported")
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns > max_pixels:
        problem = f"has {columns:,} x {rows:,} pixels, more than the {max_pixels:,} allowed"
        raise DecodeError(problem, code="too_many_pixels")
    if min(rows, columns) < 2:
        raise DecodeError(f"is {columns} x {rows} pixels, too small for a film", code="unsupported")
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric not in ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422"):
        raise DecodeError(f"has the photometric interpretation {photometric}", code="unsupported")


def _drop_empty_transforms(dataset: Any) -> None:
    """Anonymisation leaves empty elements behind; they mean as much as none, and pydicom stumbles over them."""
    for first, second in (("WindowCenter", "WindowWidth"), ("RescaleSlope", "RescaleIntercept")):
        values = [dataset.get(keyword) for keyword in (first, second)]
        if any(value in (None, "") for value in values) or (first == "WindowCenter" and _first(values[1]) < 1):
            for keyword in (first, second):
                if keyword in dataset:
                    delattr(dataset, keyword)
    if "VOILUTSequence" in dataset and not dataset.VOILUTSequence:
        del dataset.VOILUTSequence


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "__len__") else value)


def _padding(values: np.ndarray, dataset: Any) -> np.ndarray:
    """bool, the shape of the stored `values`: which of them fill the frame and belong to no film."""
    tags = [dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if tags[0] in (None, ""):
        return np.zeros(values.shape, bool)
    limits = np.array([int(tag) for tag in tags if tag not in (None, "")])
    if values.dtype.itemsize == 2:
        # The tags have 16 bits, and some devices write them unsigned beside signed pixels.
        limits = limits.astype(values.dtype)
    return (values >= limits.min()) & (values <= limits.max())


def _stretch(values: np.ndarray, dataset: Any, has_window: bool, film: np.ndarray) -> np.ndarray:
    """Values after the VOI transform to 0..255; `film` is bool, False where there is padding."""
    if has_window:
        # apply_voi_lut maps a window onto the full range of the stored type.
        bits = int(dataset.get("BitsStored", 8))
        sequence = dataset.get("VOILUTSequence")
        table = sequence or dataset.get("ModalityLUTSequence")
        if table:
            low, high = 0.0, float(2 ** int(table[0].LUTDescriptor[2]) - 1)
        elif int(dataset.get("PixelRepresentation", 0)) == 1:
            low, high = -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
        else:
            low, high = 0.0, float(2**bits - 1)
        if "RescaleSlope" in dataset and not sequence:
            slope, intercept = float(dataset.RescaleSlope), float(dataset.get("RescaleIntercept", 0))
            # A negative slope swaps them, here and in apply_voi_lut.
            low, high = low * slope + intercept, high * slope + intercept
    else:
        low, high = (float(values[film].min()), float(values[film].max())) if film.any() else (0.0, 0.0)
    if high == low:
        return np.zeros(values.shape, np.uint8)
    return ((values - low) * (255.0 / (high - low))).clip(0, 255).round().astype(np.uint8)


def _full_range(values: np.ndarray, bit_depth: int) -> np.ndarray:
    return values * (255.0 / (2**bit_depth - 1))


def _luminance(rgb: np.ndarray) -> np.ndarray:
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's convert("L")
    return (rgb @ weights).clip(0, 255).round().astype(np.uint8)


def _explain(error: Exception, content: bytes) -> DecodeError:
    text = str(error)
    syntax = re.search(rb"1\.2\.840\.10008\.1\.2[.\d]*", content[:2048])
    name = syntax.group().decode().rstrip(".") if syntax else "unknown"
    compressed = name not in _UNCOMPRESSED
    # pydicom names the plugins that tried: a damaged film is what the proper ones could not read, either.
    tried = re.search(r"\b(pylibjpeg|pydicom): ", text)
    if compressed and not tried and ("missing dependencies" in text or "plugin" in text.lower()):
        return DecodeError(
            f"is compressed with transfer syntax {name}, whose decoder is not installed",
            next_step="Install it with: pip install 'cxr_ray[dicom]'",
            code="unsupported",
        )
    if "less than" in text or "bytes of pixel data" in text or isinstance(error, EOFError):
        return DecodeError("is truncated: the file ends before its last pixel", code="truncated")
    return DecodeError(f"is a damaged DICOM file ({' '.join(text.split()) or type(error).__name__})")


def _text(header: Any, keyword: str) -> str | None:
    value = str(header.get(keyword, "") or "").strip()
    return value or None


def _age(header: Any) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", _text(header, "PatientAge") or "")
    if not match:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    return years if years <= MAX_AGE else None  # 999Y is how some devices write that they do not know
