"""PNG, JPEG, WebP, TIFF, BMP and GIF to 8-bit luminance."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from cxr_ray.data.decode_containers import Picture, check_tiff, exif_orientation, read_gif, read_png
from cxr_ray.data.decode_image import (
    BLOCK,
    DecodedImage,
    check_size,
    luminance_of,
    sampled_tint,
    scale_to_8_bit,
    tint_of,
)
from cxr_ray.data.decode_jpeg import read_jpeg
from cxr_ray.data.decode_png import read_usual_png
from cxr_ray.errors import DecodeError

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
# Of TIFF compressions; the others allocate what a file tells them to, and no film uses them.
_TIFF_COMPRESSIONS = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg", "tiff_ccitt", "group3", "group4"}
)
_TIFF_EDGES = ((322, "wide"), (323, "high"))  # of a tile
_TIFF_STRIPS = ((273, 279), (324, 325))  # offsets and byte counts of strips and tiles
_MAX_TILE_MARGIN = 1024  # pixels by which a tile may exceed a small film
_TURNS = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.T,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].T,
    8: np.rot90,
}

# A file cut short must be reported, not filled with gray by the decoder.
ImageFile.LOAD_TRUNCATED_IMAGES = False


def format_of(content: bytes) -> str | None:
    """PNG, JPEG, WEBP, TIFF, BMP or GIF by the first bytes; None if it is none of them."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _STARTS if content.startswith(start)), None)


def decode_picture(content: bytes, *, max_pixels: int, at_least: int | None) -> DecodedImage:
    """Decode a picture file; see `cxr_ray.data.decode.decode_bytes` for what it becomes and what is raised."""
    file_format = format_of(content)
    if file_format is None:
        raise DecodeError("is not an image this package reads (PNG, JPEG, WebP, TIFF, BMP, GIF or DICOM)")
    with warnings.catch_warnings():
        # Pillow warns about broken metadata that does not touch the pixels, and about sizes checked here.
        warnings.simplefilter("ignore")
        try:
            image, picture = _open(content, file_format, max_pixels)
            width, height = image.size
            check_size(width, height, len(content), max_pixels)
            samples = read_usual_png(picture.content) if file_format == "PNG" else None
            if samples is None:
                if file_format == "JPEG":
                    _draft(image, at_least)
                image.load()
                bit_depth, tint, pixels = _to_luminance(image)
                if _is_deep_colour(image, picture.content):
                    bit_depth = 16
                    _check_upper_bytes(pixels)
            elif samples.ndim == 2:
                bit_depth, tint, pixels = 8, 0.0, samples
            else:
                bit_depth, tint, pixels = 8, sampled_tint(samples), luminance_of(samples)
        except DecodeError:
            raise
        except Image.DecompressionBombError as error:
            problem = f"has more than the {max_pixels:,} pixels allowed"
            raise DecodeError(problem, code="too_many_pixels") from error
        except Exception as error:
            # Pillow's readers raise many types (struct.error, SyntaxError, ValueError ...) on damaged files.
            raise _explain(error, file_format) from error
    orientation = exif_orientation(picture.exif)
    if orientation != 1:
        pixels = np.ascontiguousarray(_TURNS[orientation](pixels))
    if orientation >= 5:
        width, height = height, width
    note = "first of several frames" if picture.more else None
    return DecodedImage(pixels, bit_depth, width, height, tint=tint, note=note)


def _open(content: bytes, file_format: str, max_pixels: int) -> tuple[Any, Picture]:
    """The file opened, and what was known of it before."""
    if file_format == "JPEG":
        jpeg = read_jpeg(content)
        check_size(jpeg.stream.width, jpeg.stream.height, len(content), max_pixels)
        picture = Picture(jpeg.content, jpeg.exif, jpeg.more)
    elif file_format == "PNG":
        picture = read_png(content)
    elif file_format == "GIF":
        picture = read_gif(content)
    else:
        picture = Picture(content, b"", False)
    if file_format == "TIFF":
        check_tiff(content)
    elif file_format == "WEBP" and 8 + int.from_bytes(content[4:8], "little") > len(content):
        raise DecodeError("is truncated: the file ends before its last pixel", code="truncated")
    image: Any = Image.open(io.BytesIO(picture.content), formats=(file_format,))
    if file_format == "TIFF":
        _check_strips(image, len(content))  # Pillow turns these itself
    elif file_format == "WEBP":
        exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        return image, replace(picture, exif=exif, more=image.is_animated)
    return image, replace(picture, more=picture.more or bool(getattr(image, "is_animated", False)))


def _check_strips(image: Any, file_bytes: int) -> None:
    compression, tags = image.info.get("compression"), image.tag_v2
    if compression not in _TIFF_COMPRESSIONS:
        raise DecodeError(f"is a TIFF file with the compression {compression}", code="unsupported")
    for (tag, word), edge in zip(_TIFF_EDGES, image.size, strict=True):
        if tags.get(tag, 0) > 2 * max(image.size) + _MAX_TILE_MARGIN:
            raise DecodeError(f"is {edge:,} pixels {word}, in TIFF tiles of {tags[tag]:,}", code="unsupported")
    for offsets, counts in _TIFF_STRIPS:
        ends = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if any(offset + count > file_bytes for offset, count in ends):
            raise DecodeError("is truncated: the file ends before its last pixel", code="truncated")


def _draft(image: Any, at_least: int | None) -> None:
    """Have libjpeg deliver luminance and chrominance as they are stored, reduced where that is allowed.

    Reducing is part of its inverse cosine transform (1/2, 1/4 or 1/8 of each edge) and leaves out the rest of it.
    """
    size = image.size if at_least is None else (at_least, at_least)
    # JFIF says YCbCr (ITU-T T.871 section 7); without it the file may hold RGB, which cannot be converted to that.
    coded_as_ycbcr = image.mode == "RGB" and "jfif" in image.info and "adobe" not in image.info
    image.draft("YCbCr" if coded_as_ycbcr else None, size)


def _to_luminance(image: Any) -> tuple[int, float, np.ndarray]:
    """Bits a sample, tint, and uint8 (H, W), of an image that is loaded."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        bit_depth, pixels = _scale_deep(np.asarray(image), mode)
        # Pillow inverts such TIFFs up to 8 bit itself, and leaves deeper ones as they are.
        return bit_depth, 0.0, cv2.bitwise_not(pixels) if _white_is_zero(image) else pixels
    bit_depth = 1 if mode == "1" else 8
    if "transparency" in image.info:
        image = image.convert("LA" if mode in ("1", "L", "LA") else "RGBA")
    elif mode in ("PA", "RGBa", "La"):
        image = image.convert({"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}[mode])
    elif mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    elif mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "YCbCr"):
        image = image.convert("RGB")  # CMYK, RGBX
    if image.mode == "YCbCr":
        # 4,096 pixels are enough for a mean.
        sample = image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB")
        return bit_depth, tint_of(np.asarray(sample)), np.asarray(image.getchannel(0))
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode == "LA":
        image, opacity = image.getchannel(0), np.asarray(image.getchannel(1))
        return bit_depth, 0.0, cv2.multiply(np.asarray(image), opacity, scale=1 / 255)
    if image.mode in ("RGB", "RGBA"):
        sample = image.resize((64, 64), Image.Resampling.NEAREST)
        return bit_depth, sampled_tint(np.asarray(sample)), _in_strips(image)
    return bit_depth, 0.0, np.asarray(image if image.mode == "L" else image.convert("L"))


def _is_deep_colour(image: Any, content: bytes) -> bool:
    """Whether samples of 16 bits are in colour (or have opacity), of which Pillow keeps the upper bytes."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return False
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITSPERSAMPLE, (8,))) > 8
    return content.startswith(b"\x89PNG") and content[24] == 16


def _check_upper_bytes(pixels: np.ndarray) -> None:
    # Films of 12 and 14 bits in files of 16 would become 16 or 64 gray levels near black.
    if pixels.max(initial=0) < 64:
        raise DecodeError(
            "has 16-bit colour samples that use 14 bits or fewer",
            code="unsupported",
            next_step="Save it in gray, of which all bits are read",
        )


def _in_strips(image: Any) -> np.ndarray:
    """`luminance_of` a colour image, some rows at a time: as an array the whole would take its memory twice again."""
    width, height = image.size
    pixels = np.empty((height, width), np.uint8)
    rows = max(1, BLOCK // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = luminance_of(np.asarray(image.crop((0, top, width, bottom))))
    return pixels


def _white_is_zero(image: Any) -> bool:
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _scale_deep(values: np.ndarray, mode: str) -> tuple[int, np.ndarray]:
    """16- and 32-bit samples to 8 bit: whole numbers over the full range of the type they fit in."""
    if mode == "F":
        finite = np.isfinite(values)
        low = float(np.min(values, where=finite, initial=np.inf))
        high = float(np.max(values, where=finite, initial=-np.inf))
        return 32, scale_to_8_bit(values, low, high)
    top = int(values.max(initial=0))
    # 12-bit detectors often store into 16-bit files; dividing those by 65,535 would leave 16 gray levels.
    bit_depth = next((bits for bits in (8, 10, 12, 14, 16) if top < 1 << bits), 32)
    if values.dtype == np.uint16:
        return bit_depth, cv2.convertScaleAbs(values, alpha=255.0 / ((1 << bit_depth) - 1))
    return bit_depth, scale_to_8_bit(values, 0, (1 << bit_depth) - 1)


def _explain(error: Exception, file_format: str) -> DecodeError:
    if isinstance(error, UnidentifiedImageError):  # its text names the buffer, not the reason
        if file_format == "TIFF":
            return DecodeError("is a TIFF file whose samples are laid out as no film's", code="unsupported")
        return DecodeError(f"is a damaged {file_format} file: its header makes no sense")
    text = str(error)
    if any(word in text.lower() for word in ("truncated", "not enough", "unexpected end", "broken data stream")):
        return DecodeError("is truncated: the file ends before its last pixel", code="truncated")
    return DecodeError(f"is a damaged {file_format} file ({' '.join(text.split()) or type(error).__name__})")
