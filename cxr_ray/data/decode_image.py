"""What decoding yields, the limits that hold for every format, and arithmetic that the formats share."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cxr_ray.errors import DecodeError

# The largest detectors make about 20 megapixels, a film scanned at 400 dpi 38. Decoding this many costs less than
# a gigabyte in every format.
MAX_PIXELS = 50_000_000
MAX_AGE = 150  # years
MAX_EDGE = 32_767  # pixels; OpenCV counts them in 16 bits

# Blank areas compress without end, films do not: 1,000 pixels in each byte of a large file are a decompression bomb.
_LARGE = 25_000_000  # pixels; lung masks have fewer, and compress as films do not
_PIXELS_PER_BYTE = 1_000

BLOCK = 1 << 20  # pixels that are worked on at a time where an operation needs several bytes for each


@dataclass(frozen=True)
class DecodedImage:
    """One film as the package sees it.

    Attributes:
        pixels: uint8, (H, W), 0 black to 255 white, bone bright. As many as the file has, unless `decode_bytes` was
            allowed to deliver fewer.
        bit_depth: Bits a sample in the file (1, 8, 12, 16 ...).
        width: Of the film in the file, pixels, once turned upright.
        height: Of the film in the file, pixels, once turned upright.
        tint: Mean distance between the colour channels, 0 (gray) to 1; a giveaway of the source in some sets.
        view: DICOM ViewPosition (PA, AP ...); LATERAL where only other fields say so; None if nothing says.
        sex: DICOM PatientSex, None if the file does not say.
        age: DICOM PatientAge in years, None if the file does not say.
        patient_id: DICOM PatientID, None if the file does not say.
        note: What a reader should know about the decoding ("first of several frames"), None mostly.
    """

    pixels: np.ndarray
    bit_depth: int
    width: int
    height: int
    tint: float = 0.0
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    patient_id: str | None = None
    note: str | None = None


def check_size(width: int, height: int, file_bytes: int, max_pixels: int) -> None:
    """Judge a film by the size its header claims, before anything is allocated for it.

    Args:
        width: Pixels.
        height: Pixels.
        file_bytes: Length of the file.
        max_pixels: Most that are allowed.

    Raises:
        DecodeError: ``too_many_pixels``, or ``unsupported`` where there are fewer than 2 either way.
    """
    if min(width, height) < 2:
        raise DecodeError(f"is {width} x {height} pixels, too small for a film", code="unsupported")
    size = f"{width:,} x {height:,} pixels"
    if width * height > max_pixels:
        raise DecodeError(f"has {size}, more than the {max_pixels:,} allowed", code="too_many_pixels")
    if max(width, height) > MAX_EDGE:
        raise DecodeError(f"has {size}; an edge may have {MAX_EDGE:,}", code="too_many_pixels")
    if width * height > max(_LARGE, _PIXELS_PER_BYTE * file_bytes):
        raise DecodeError(f"claims {size} in {file_bytes:,} bytes, as no film does", code="too_many_pixels")


def scale_to_8_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low` .. `high` to 0 .. 255, rounded; what lies outside or is not finite is clipped (NaN to 0).

    Args:
        values: (H, W), any real type.
        low: Becomes black.
        high: Becomes white; equal to `low` everything is black.

    Returns:
        uint8, (H, W).
    """
    pixels = np.zeros(values.shape, np.uint8)
    if not high > low:
        return pixels
    rows = max(1, BLOCK // values.shape[1])
    for top in range(0, len(values), rows):
        # float64, because the span of 32-bit values does not fit in less.
        scaled = (values[top : top + rows].astype(np.float64) - low) * (255.0 / (high - low))
        pixels[top : top + rows] = np.nan_to_num(scaled, nan=0.0).clip(0, 255).round()
    return pixels


def look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``table[values]`` without the eight bytes a pixel that indexing takes.

    Args:
        table: uint8, (256,) or (65536,).
        values: uint8 or uint16, (H, W).

    Returns:
        uint8, (H, W).
    """
    if values.dtype == np.uint8:
        return cv2.LUT(values, table)
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, (BLOCK // 4) // values.shape[1])
    for top in range(0, len(values), rows):
        np.take(table, values[top : top + rows], out=pixels[top : top + rows], mode="clip")
    return pixels


def luminance_of(colours: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luminance, uint8 (H, W), of uint8 (H, W, 3) RGB or (H, W, 4) RGBA over black."""
    if colours.shape[2] == 3:
        return cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    pixels, opacity = cv2.cvtColor(colours, cv2.COLOR_RGBA2GRAY), cv2.extractChannel(colours, 3)
    if opacity.min() < 255:
        # Over black, the luminance of a colour is that of the opaque one times the opacity.
        return cv2.multiply(pixels, opacity, scale=1 / 255)
    return pixels


def tint_of(rgb: np.ndarray) -> float:
    """Mean distance between the largest and the smallest channel, 0 to 1, of colours from 0 to 255, (..., 3)."""
    red, green, blue = np.moveaxis(np.asarray(rgb, np.float32), -1, 0)
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return float((largest - smallest).mean() / 255.0)


def sampled_tint(colours: np.ndarray) -> float:
    """`tint_of` a film, uint8 (H, W, 3) RGB or (H, W, 4) RGBA over black, from 64 x 64 of its pixels.

    They are enough for a mean, and keep large colour scans cheap.
    """
    rows, columns = ((np.arange(64) + 0.5) * (edge / 64) for edge in colours.shape[:2])
    sample = colours[rows.astype(int)[:, None], columns.astype(int)].astype(np.float32)
    return tint_of(sample[..., :3] if colours.shape[2] == 3 else sample[..., :3] * (sample[..., 3:] / 255))
