"""The samples of one DICOM frame, whatever its transfer syntax, from streams whose own headers were checked."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any

import numpy as np
from PIL import Image
from pydicom.encaps import generate_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from cxr_ray.data.decode_jpeg import (
    BASELINE,
    EXTENDED,
    JPEG_LS,
    LOSSLESS,
    Stream,
    read_jpeg2000_stream,
    read_jpeg_stream,
)
from cxr_ray.errors import DecodeError

_PROCESSES = {
    JPEGBaseline8Bit: (BASELINE,),
    JPEGExtended12Bit: (BASELINE, EXTENDED),
    JPEGLossless: (LOSSLESS,),
    JPEGLosslessSV1: (LOSSLESS,),
    **dict.fromkeys(JPEGLSTransferSyntaxes, (JPEG_LS,)),
}


def read_samples(dataset: Any, syntax: UID) -> tuple[np.ndarray, str]:
    """Decode the one frame of a dataset whose header was checked.

    Args:
        dataset: A pydicom Dataset with Pixel Data.
        syntax: Its transfer syntax.

    Returns:
        uint8 or uint16, (H, W) or (H, W, 3), the bits as they are stored, signed or not; and the photometric
        interpretation they have now (JPEG 2000 undoes its own colour transform).

    Raises:
        DecodeError: The stream claims another image than the header, or work that no film needs.
        Exception: Whatever pydicom and its plug-ins raise on damaged files.
    """
    photometric = str(dataset.PhotometricInterpretation)
    if syntax.is_encapsulated:
        frame = _frame(dataset)
        if syntax == RLELossless:
            return _run_lengths(frame, dataset), photometric
        stream = _check_stream(frame, syntax, dataset)
        if stream.process in (BASELINE, EXTENDED) and (stream.precision, stream.components) == (8, 1):
            return _baseline(frame), photometric
    decoder = get_decoder(syntax)
    # Pillow reads JPEG 2000, too, but not its signed samples.
    plugin = "pylibjpeg" if "pylibjpeg" in decoder.available_plugins else ""
    options: dict[str, Any] = {"decoding_plugin": plugin, "view_only": True}
    samples, properties = decoder.as_array(dataset, index=0, raw=True, **options)
    if samples.shape[:2] != (dataset.Rows, dataset.Columns) or samples.dtype.itemsize > 2:
        raise DecodeError("is a damaged DICOM file (its pixels are not what its header says)")
    unsigned = samples.astype(samples.dtype.newbyteorder("="), copy=False).view(f"u{samples.dtype.itemsize}")
    return unsigned, str(properties["photometric_interpretation"])


def _frame(dataset: Any) -> bytes:
    # The first is the table of offsets, of no use for one frame.
    return b"".join(itertools.islice(generate_fragments(dataset.PixelData), 1, None))


def _check_stream(frame: bytes, syntax: UID, dataset: Any) -> Stream:
    if syntax in JPEG2000TransferSyntaxes or "JPEG 2000" in syntax.name:
        stream = read_jpeg2000_stream(frame)
    elif syntax in _PROCESSES:
        stream = read_jpeg_stream(frame)
        if stream.process not in _PROCESSES[syntax]:
            raise DecodeError("is a damaged DICOM file (its JPEG stream is not of its transfer syntax)")
    else:
        raise DecodeError(f"has the transfer syntax {syntax.name}, which is not read", code="unsupported")
    claimed = (stream.width, stream.height, stream.components)
    stated = (dataset.Columns, dataset.Rows, dataset.SamplesPerPixel)
    if claimed != stated or stream.precision > dataset.BitsAllocated:
        sizes = [f"{width} x {height} x {samples}" for width, height, samples in (claimed, stated)]
        raise DecodeError(f"is a damaged DICOM file (pixels of {sizes[0]} under a header of {sizes[1]})")
    return stream


def _baseline(frame: bytes) -> np.ndarray:
    # Pillow has libjpeg-turbo, which is four times as fast as the decoder of pylibjpeg.
    return np.asarray(Image.open(io.BytesIO(frame), formats=("JPEG",)))


def _run_lengths(frame: bytes, dataset: Any) -> np.ndarray:
    """RLE Lossless (PS3.5 annex G): a PackBits segment for each byte of a sample, the highest first."""
    samples, size = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated) // 8
    count, *offsets = struct.unpack_from("<16I", frame)
    if size < 1 or count != samples * size:
        raise DecodeError("is a damaged DICOM file (its run lengths are in the wrong number of segments)")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    pixels = np.empty((rows, columns, samples, size), np.uint8)
    ends = [*offsets[1:count], len(frame)]
    for k, (start, end) in enumerate(zip(offsets[:count], ends, strict=True)):
        # One row for Pillow, because runs may go over the ends of the film's rows.
        plane = Image.frombytes("L", (rows * columns, 1), frame[start:end], "packbits", "L")
        pixels[:, :, k // size, size - 1 - k % size] = np.asarray(plane).reshape(rows, columns)
    values = pixels.view("<u2" if size == 2 else np.uint8)[..., 0]
    return values[..., 0] if samples == 1 else values
