"""The usual PNG films (8 bit, gray or colour) to samples, faster than Pillow."""

from __future__ import annotations

import struct

import kornia_rs
import numpy as np

_HEADER = struct.Struct(">IIBBBBB")  # PNG third edition, section 11.2.1
_HEADER_AT = 16
_MODES = {0: ("mono", 1), 2: ("rgb", 3), 6: ("rgba", 4)}  # by colour type: kornia's name, samples a pixel
_TRANSPARENCY_AT = 33  # the chunk after the header: `read_png` leaves a palette or transparency before the pixels


def read_usual_png(content: bytes) -> np.ndarray | None:
    """Decode a PNG file with kornia-rs, whose decoder is written in Rust and checks every bound.

    Over 25 PNG files as published it takes 0.60 of Pillow's time: 0.7 on 5 megapixels in colour, 0.4 on 256 x 256.

    Args:
        content: The file as `cxr_ray.data.decode_containers.read_png` leaves it. Its size is one that
            `cxr_ray.data.decode_image.check_size` allows.

    Returns:
        uint8, (H, W), (H, W, 3) or (H, W, 4); None where the file is of another kind (palette, 1 or 16 bit, a
        transparent colour) or damaged, so that Pillow reads it or says what is wrong.
    """
    if len(content) < _TRANSPARENCY_AT + 8:
        return None
    width, height, depth, colour, *_ = _HEADER.unpack_from(content, _HEADER_AT)
    if depth != 8 or colour not in _MODES or content[_TRANSPARENCY_AT + 4 : _TRANSPARENCY_AT + 8] != b"IDAT":
        return None
    mode, samples = _MODES[colour]
    try:
        pixels = np.asarray(kornia_rs.io.decode_image_png_u8(content, (height, width), mode))
    except Exception:  # it raises no type of its own
        return None
    return pixels[:, :, 0] if samples == 1 else pixels
