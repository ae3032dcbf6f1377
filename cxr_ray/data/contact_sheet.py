"""Many films on one picture, each with its caption: what a person looks at before believing a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cxr_ray.errors import DataError

_PAPER, _INK, _MOUNT = 255, 0, 128  # gray levels; the mount lies where a film that is not square leaves its cell bare
_GAP = 6  # pixels between cells
_LETTERS = 12  # pixels of type, readable at the picture's own size
_LINE = _LETTERS + 3
_DOTS = "…"


def contact_sheet(
    films: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 10, edge: int = 128
) -> Image.Image:
    """Lay films out in rows, in the order given, each with its caption below.

    Args:
        films: uint8, (height, width) each, 8-bit luminance; any sizes, shown whole in their own proportions.
        captions: One a film; a line break starts a new line, and a line too wide for its cell ends in an ellipsis.
        columns: Films in a row; fewer films than that make a narrower picture.
        edge: Of the square cell a film is shown in, pixels.

    Returns:
        A gray picture (mode ``L``) of ``columns * (edge + 6) + 6`` pixels' width.

    Raises:
        DataError: No films, another number of captions, or a film that is not uint8 of two dimensions.
    """
    if not films:
        raise DataError("a contact sheet needs at least one film")
    if len(films) != len(captions):
        raise DataError(
            f"a contact sheet got {len(films)} film(s) and {len(captions)} caption(s); one a film is allowed"
        )
    columns = min(columns, len(films))
    rows = -(-len(films) // columns)
    lines = max(caption.count("\n") + 1 for caption in captions)
    width, height = edge + _GAP, edge + _GAP + lines * _LINE
    sheet = Image.new("L", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_LETTERS)
    for number, (film, caption) in enumerate(zip(films, captions, strict=True)):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        draw.rectangle((left, top, left + edge - 1, top + edge - 1), fill=_MOUNT)
        picture = _fitted(film, edge)
        sheet.paste(picture, (left + (edge - picture.width) // 2, top + (edge - picture.height) // 2))
        for line, text in enumerate(caption.split("\n")):
            draw.text((left, top + edge + line * _LINE), _shortened(text, edge, font), fill=_INK, font=font)
    return sheet


def _fitted(film: np.ndarray, edge: int) -> Image.Image:
    if film.dtype != np.uint8 or film.ndim != 2:
        raise DataError(f"a contact sheet shows uint8 films of two dimensions, not {film.dtype} of shape {film.shape}")
    height, width = film.shape
    scale = edge / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(film).resize(shape, Image.Resampling.LANCZOS)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + _DOTS) > width:
        text = text[:-1]
    return text + _DOTS
