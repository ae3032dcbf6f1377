"""The part of an import that runs on any node: a chunk of films to pixels and manifest rows."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr_ray.data.decode import DecodedImage, decode_square
from cxr_ray.data.decode_frame import decode_frame
from cxr_ray.data.listing import LUNG_MASK, SourceFile
from cxr_ray.data.quality import difference_hash, measure_quality
from cxr_ray.data.resize import Fit
from cxr_ray.data.views import is_lateral
from cxr_ray.errors import DecodeError
from cxr_ray.paths import Location, locate, printable

_MOST_CLASSES = 8  # in a mask of class numbers
_PLACEHOLDER_PATIENTS = frozenset({"anon", "anonymous", "anonymized", "unknown", "none", "null", "nan", "na", "n/a"})


@dataclass(frozen=True)
class Chunk:
    """A unit of work: which films to decode, and how.

    Attributes:
        root: The source folder, a local path or a URI.
        files: The films.
        frames: Their pixels, where the films lie in a file that holds many: uint8, (H, W) or (H, W, 3), one each.
        size: Edge of the squares to make.
        fit: How a film becomes a square.
        lung_masks: Whether to read the films' lung masks too.
    """

    root: str
    files: tuple[SourceFile, ...]
    size: int
    fit: Fit
    frames: Sequence[np.ndarray] | None = None
    lung_masks: bool = False


@dataclass
class ChunkResult:
    """What became of a chunk.

    Attributes:
        pixels: uint8, (films taken, size, size).
        rows: Their manifest rows.
        lung_masks: uint8, (films taken, size, size), 0 or 255; None where none were asked for.
        unreadable: ``path``, ``code`` and ``reason`` of films that cannot be decoded.
        unreadable_numbers: Which of the chunk's films they are.
        set_aside: ``path`` and ``reason`` of films that are not wanted.
    """

    pixels: np.ndarray
    rows: list[dict[str, Any]] = field(default_factory=list)
    lung_masks: np.ndarray | None = None
    unreadable: list[dict[str, str]] = field(default_factory=list)
    unreadable_numbers: list[int] = field(default_factory=list)
    set_aside: list[dict[str, str]] = field(default_factory=list)


def decode_chunk(chunk: Chunk) -> ChunkResult:
    """Decode, resize and measure the films of one chunk; runs on any node that sees the files."""
    taken = 0
    result = ChunkResult(pixels=np.zeros((len(chunk.files), chunk.size, chunk.size), np.uint8))
    masks = np.zeros_like(result.pixels) if chunk.lung_masks else None
    for number, file in enumerate(chunk.files):
        try:
            if chunk.frames is None:
                content = _read(chunk.root, file.path)
                square, image = decode_square(content, chunk.size, chunk.fit)
            else:
                content = np.ascontiguousarray(chunk.frames[number]).tobytes()
                square, image = decode_frame(chunk.frames[number], chunk.size, chunk.fit)
            if masks is not None:
                masks[taken] = _lung_mask(chunk, file)
        except DecodeError as error:
            reason = f"{error.problem}. {error.next_step}" if error.next_step else error.problem
            result.unreadable.append({"path": name_of(file), "code": error.code, "reason": reason})
            result.unreadable_numbers.append(number)
            continue
        view = file.view or image.view
        if is_lateral(view):
            result.set_aside.append({"path": name_of(file), "reason": f"is a lateral view ({view})"})
            continue
        result.pixels[taken] = square
        result.rows.append(_row(file, content, square, image))
        taken += 1
    result.pixels = result.pixels[:taken]
    result.lung_masks = None if masks is None else masks[:taken]
    return result


def name_of(file: SourceFile) -> str:
    """A film's name for messages and reports."""
    return printable(file.path) + (f", image {file.frame}" if file.frame else "")


def _row(file: SourceFile, content: bytes, square: np.ndarray, image: DecodedImage) -> dict[str, Any]:
    identity = hashlib.sha256(content)
    identity.update(f"\0{file.path}\0{file.frame}".encode())
    return {
        "image_id": identity.hexdigest()[:16],
        "pixel_hash": hashlib.sha256(square.data).hexdigest()[:16],
        "label": file.label,
        "source": file.source,
        "patient_id": _patient(file.patient_id, image.patient_id),
        "split": file.split,
        "path": file.path,
        "view": file.view or image.view,
        "sex": file.sex or image.sex,
        "age": file.age if file.age is not None else image.age,
        "width": image.width,
        "height": image.height,
        "bit_depth": image.bit_depth,
        "dhash": difference_hash(square),
        "tint": image.tint,
        "quality_flags": [],
        **measure_quality(square),
        **file.extra,
    }


def _read(root: str, relative: str) -> bytes:
    if printable(relative) != relative:
        raise DecodeError("has a name that is not UTF-8", next_step="Rename it", code="unreadable")
    location = _folder(root)
    try:
        if not location.is_local:
            return location.child(relative).read_bytes()
        path = Path(location.path) / relative
        if path.exists() and not path.is_file():  # a named pipe would keep the import waiting for ever
            raise DecodeError("is a folder or another thing that is not a file", code="unreadable")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise DecodeError(f"cannot be read ({reason})", code="unreadable") from error


@functools.lru_cache(maxsize=4)
def _folder(root: str) -> Location:
    return locate(root)


def _lung_mask(chunk: Chunk, file: SourceFile) -> np.ndarray:
    """uint8, (size, size), 0 or 255; nothing where the film has no mask."""
    lungs = np.zeros((chunk.size, chunk.size), np.uint8)
    for path in filter(None, file.extra.get(LUNG_MASK, "").split("|")):  # left and right may be files of their own
        try:
            mask, _ = decode_square(_read(chunk.root, path), chunk.size, chunk.fit)
        except DecodeError as error:
            raise DecodeError(f"has a lung mask that {error.problem} ({path})", code=error.code) from error
        # Some tools write class numbers (0, 1, 2), which would all be black.
        lungs[mask > (127 if mask.max() > _MOST_CLASSES else 0)] = 255
    return lungs


def _patient(listed: str | None, in_file: str | None) -> str | None:
    """The patient a CSV names, else the one the file names; None where that is a placeholder for all patients.

    Zero is a placeholder in a DICOM file, but in a CSV it may be the first of patients numbered from zero, whose
    films must stay together as anyone's.
    """
    if listed and listed.lower() not in _PLACEHOLDER_PATIENTS:
        return listed
    if in_file and in_file != "0" and in_file.lower() not in _PLACEHOLDER_PATIENTS:
        return in_file
    return None
