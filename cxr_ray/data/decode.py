"""Bytes to 8-bit luminance: the one decoder that import, evaluation and serving share."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from cxr_ray.data.decode_dicom import decode_dicom, is_dicom
from cxr_ray.errors import DecodeError

MAX_PIXELS = 100_000_000  # a 10,000 x 10,000 film; the largest detectors make about 20 megapixels
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".dic"}
)


@dataclass(frozen=True)
class DecodedImage:
    """One film as the package sees it.

    Attributes:
        pixels: uint8, (height, width), 0 black to 255 white, bone bright.
        bit_depth: Bits a sample in the file (1, 8, 12, 16 ...).
        tint: Mean distance between the colour channels, 0 (gray) to 1; a giveaway of the source in some sets.
        view: DICOM ViewPosition (PA, AP ...), None if the file does not say.
        sex: DICOM PatientSex, None if the file does not say.
        age: DICOM PatientAge in years, None if the file does not say.
        patient_id: DICOM PatientID, None if the file does not say.
        note: What a reader should know about the decoding ("first of 4 frames"), None mostly.
    """

    pixels: np.ndarray
    bit_depth: int
    tint: float = 0.0
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    patient_id: str | None = None
    note: str | None = None


def decode_file(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a film from a file; see `decode_bytes`. Raises DecodeError naming the file."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise DecodeError(problem, where=path, code="unreadable") from error
    try:
        return decode_bytes(content, max_pixels=max_pixels)
    except DecodeError as error:
        raise error.at(path) from error


def decode_bytes(content: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a film: PNG, JPEG, WebP, TIFF, BMP or DICOM, told apart by content, not by name.

    Colour becomes ITU-R 601 luminance, transparency lies over black, EXIF rotation is applied, deeper than
    8 bit is scaled (images: by the full range of the type; DICOM: by its window, see `decode_dicom`).

    Args:
        content: The whole file.
        max_pixels: Refused above this, from the header, before any pixel is decoded.

    Raises:
        DecodeError: With `code` one of ``empty``, ``not_an_image``, ``too_many_pixels``, ``truncated``,
            ``unsupported``.
    """
    if not content:
        raise DecodeError("the file is empty (0 bytes)", code="empty")
    if is_dicom(content):
        return DecodedImage(**decode_dicom(content, max_pixels=max_pixels))
    with warnings.catch_warnings():
        # Pillow warns about broken metadata that does not touch the pixels, and about sizes checked here.
        warnings.simplefilter("ignore")
        return _decode_picture(content, max_pixels)


def _decode_picture(content: bytes, max_pixels: int) -> DecodedImage:
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise DecodeError(f"has more than the {max_pixels:,} pixels allowed", code="too_many_pixels") from error
    except Exception as error:
        # Pillow's readers raise many types (struct.error, SyntaxError, ValueError ...) on foreign bytes.
        raise DecodeError(
            "is not an image this package reads (PNG, JPEG, WebP, TIFF, BMP or DICOM)", code="not_an_image"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        problem = f"has {width:,} x {height:,} pixels, more than the {max_pixels:,} allowed"
        raise DecodeError(problem, code="too_many_pixels")
    if min(width, height) < 2:
        raise DecodeError(f"is {width} x {height} pixels, too small for a film", code="unsupported")
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
        bit_depth, tint, pixels = _to_luminance(image)
    except Exception as error:
        # As above: the decoders of the formats have no common exception.
        code = "truncated" if _is_truncated(error) else "not_an_image"
        what = "is truncated: the file ends before its last pixel" if code == "truncated" else "is damaged"
        detail = "" if code == "truncated" else f" ({error})"
        raise DecodeError(f"{what}{detail}", code=code) from error
    note = f"first of {frames} frames" if frames > 1 else None
    return DecodedImage(pixels=pixels, bit_depth=bit_depth, tint=tint, note=note)


def _is_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("truncated", "not enough", "unexpected end", "broken data stream"))


def _to_luminance(image: Image.Image) -> tuple[int, float, np.ndarray]:
    turned = ImageOps.exif_transpose(image)
    mode = turned.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        bit_depth, pixels = _scale_deep(np.asarray(turned), mode)
        # Pillow inverts such TIFFs up to 8 bit itself, and leaves deeper ones as they are.
        return bit_depth, 0.0, 255 - pixels if _white_is_zero(image) else pixels
    if mode == "1":
        return 1, 0.0, np.asarray(turned.convert("L"))
    if mode == "L":
        return 8, 0.0, np.asarray(turned)
    has_alpha = mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info
    if has_alpha:
        rgba = turned.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        colour = Image.alpha_composite(black, rgba).convert("RGB")
    else:
        colour = turned.convert("RGB")
    return 8, _tint(colour), np.asarray(colour.convert("L"))


def _white_is_zero(image: Image.Image) -> bool:
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _scale_deep(values: np.ndarray, mode: str) -> tuple[int, np.ndarray]:
    """16- and 32-bit samples to 8 bit over the full range of the type the values fit in."""
    if mode == "F":
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        span = high - low if np.isfinite(high - low) and high > low else 1.0
        return 32, (np.nan_to_num(values - low) / span * 255).clip(0, 255).round().astype(np.uint8)
    top = int(values.max(initial=0))
    # 12-bit detectors often store into 16-bit files; dividing those by 65,535 would leave 16 gray levels.
    bit_depth = next((bits for bits in (8, 10, 12, 14, 16) if top < 1 << bits), 32)
    scaled = values.astype(np.float32) * (255.0 / ((1 << bit_depth) - 1))
    return bit_depth, scaled.clip(0, 255).round().astype(np.uint8)


def _tint(colour: Image.Image) -> float:
    # A thumbnail is enough for a mean and keeps 20-megapixel colour scans cheap.
    small = np.asarray(colour.resize((64, 64), Image.Resampling.BOX), np.float32)
    return float((small.max(axis=2) - small.min(axis=2)).mean() / 255.0)


# A file cut short must be reported, not filled with gray by the decoder.
ImageFile.LOAD_TRUNCATED_IMAGES = False
