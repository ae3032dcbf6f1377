"""From the values a DICOM film stores to gray levels: one table, because there are at most 65,536 of them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from cxr_ray.data.decode_image import look_up
from cxr_ray.errors import DecodeError

_MAX_LUT_BYTES = 1 << 20


def to_gray(stored: np.ndarray, header: Any, *, inverted: bool) -> np.ndarray:
    """Apply the modality LUT, the VOI LUT or window, and the photometric interpretation.

    Modality: PS3.3 C.11.1. VOI: C.11.2, a table before a window, of several the first. A film with neither is
    scaled from its smallest to its largest value. Pixel padding (C.7.5.1.1.2) counts for nothing and is black.

    Args:
        stored: uint8 or uint16, (H, W): the samples as they lie in the file, signed or not.
        header: The pydicom Dataset that describes them.
        inverted: Whether the smallest value is white (MONOCHROME1).

    Returns:
        uint8, (H, W), bone bright.
    """
    levels = 1 << 8 * stored.itemsize
    bits = min(max(int(header.get("BitsStored", 0) or levels.bit_length() - 1), 1), levels.bit_length() - 1)
    signed = bool(header.get("PixelRepresentation", 0))
    # Devices keep overlays in the bits above those stored, and the lowest in others.
    values = (np.arange(levels) >> _unused_low_bits(stored, header, bits)) & ((1 << bits) - 1)
    if signed:
        values = np.where(values >> (bits - 1), values - (1 << bits), values)
    padding = _padding(values, header, stored.dtype)
    rescaled = _modality(values, header)
    shown = _voi(rescaled, header)
    if shown is None:
        shown = _stretch(rescaled, _occurring(stored) & ~padding)
    if inverted:
        shown = 1 - shown
    table = (shown * 255).clip(0, 255).round().astype(np.uint8)
    table[padding] = 0
    return look_up(table, stored)


def _unused_low_bits(stored: np.ndarray, header: Any, bits: int) -> int:
    """How far samples lie above the lowest bit; 0 where HighBit says so and the bits below are used all the same."""
    high = _number(header, "HighBit")
    shift = 0 if high is None else int(high) + 1 - bits
    if not 0 < shift <= 8 * stored.itemsize - bits or (stored & ((1 << shift) - 1)).any():
        return 0
    return shift


def _padding(values: np.ndarray, header: Any, dtype: np.dtype) -> np.ndarray:
    """bool, one a value: which of them fill the frame and belong to no film."""
    tags = [_number(header, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    limits = np.array([tag for tag in tags if tag is not None])
    if tags[0] is None or not np.isfinite(limits).all():
        return np.zeros(values.shape, bool)
    if dtype.itemsize == 2 and values.min() < 0:
        # The tags have 16 bits, and some devices write them unsigned beside signed pixels.
        limits = np.where(limits > 32767, limits - 65536, limits)
    return (values >= limits.min()) & (values <= limits.max())


def _modality(values: np.ndarray, header: Any) -> np.ndarray:
    if sequence := header.get("ModalityLUTSequence"):
        return _apply_table(values, sequence[0])[0]
    slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
    # Anonymisation leaves empty elements behind; they mean as much as none.
    if slope is None or intercept is None or not np.isfinite([slope, intercept]).all():
        return values.astype(np.float64)
    return values * float(slope) + float(intercept)


def _voi(values: np.ndarray, header: Any) -> np.ndarray | None:
    """0 black to 1 white, one a value; None where there is neither table nor window."""
    if sequence := header.get("VOILUTSequence"):
        entries, bits = _apply_table(values, sequence[0])
        return entries / ((1 << bits) - 1)
    centre, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    if centre is None or width is None or not np.isfinite([centre, width]).all():
        return None
    function = str(header.get("VOILUTFunction", "") or "LINEAR").strip().upper()
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp((-4 * (values - centre) / width).clip(-700, 700)))
    if function == "LINEAR_EXACT" and width > 0:
        return ((values - centre) / width + 0.5).clip(0, 1)
    if width < 1:
        return None
    # A width of 1 is a step.
    return ((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5).clip(0, 1)


def _stretch(values: np.ndarray, occurring: np.ndarray) -> np.ndarray:
    found = values[occurring]
    if not found.size or found.min() == found.max():
        return np.zeros(values.shape)
    return ((values - found.min()) / (found.max() - found.min())).clip(0, 1)


def _occurring(stored: np.ndarray) -> np.ndarray:
    """bool, one a value: which of them the film has."""
    levels = 1 << 8 * stored.itemsize
    return cv2.calcHist([stored], [0], None, [levels], [0, levels]).ravel() > 0


def _apply_table(values: np.ndarray, item: Any) -> tuple[np.ndarray, int]:
    """Values through a LUT (PS3.3 C.11.1.1), and the bits of what comes out."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    # PS3.3 has 0 stand for 65,536. The first value is written unsigned, too, where it is negative.
    entries = (entries & 0xFFFF) or 65536
    if first > 32767 and values.min() < 0:
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes):
        little = getattr(item, "original_encoding", (None, True))[1] is not False
        data = np.frombuffer(data, np.uint8 if len(data) == entries else "<u2" if little else ">u2")
    table = np.asarray(data, np.int64).ravel()[:entries] & 0xFFFF
    if not 1 <= bits <= 16 or not len(table):
        raise DecodeError("is a damaged DICOM file (a lookup table makes no sense)")
    # Some devices say 16 bits of tables that hold 12; the film would be black.
    needed = max(8, int(table.max()).bit_length())
    bits = needed if bits - needed >= 2 else bits
    return table[(values - first).round().clip(0, len(table) - 1).astype(np.int64)].astype(np.float64), bits


def _number(header: Any, keyword: str) -> float | None:
    """The first value of an element; None where it is missing, empty or no number."""
    value = header.get(keyword)
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        return float(value[0] if hasattr(value, "__len__") else value)
    except (TypeError, ValueError, IndexError):
        return None
