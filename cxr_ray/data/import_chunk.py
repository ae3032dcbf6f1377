"""The part of an import that runs on any node: a chunk of files to pixels and manifest rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_ray.data.decode import decode_bytes
from cxr_ray.data.quality import difference_hash, measure_quality
from cxr_ray.data.resize import Fit, fit_square
from cxr_ray.data.sources import SourceFile, printable
from cxr_ray.errors import DecodeError

_PLACEHOLDER_PATIENTS = frozenset({"anon", "anonymous", "anonymized", "unknown", "none", "null", "nan", "na", "n/a"})


@dataclass(frozen=True)
class Chunk:
    """A unit of work: which files to decode, and how."""

    root: str
    files: tuple[SourceFile, ...]
    size: int
    fit: Fit


@dataclass(frozen=True)
class ChunkResult:
    """`pixels` is uint8, (readable files, size, size); `rows` their manifest rows; `unreadable` the others."""

    pixels: np.ndarray
    rows: list[dict[str, Any]]
    unreadable: list[dict[str, str]]


def decode_chunk(chunk: Chunk) -> ChunkResult:
    """Decode, resize and measure the files of one chunk; runs on any node that sees the files."""
    pixels, rows, unreadable = [], [], []
    for file in chunk.files:
        path = Path(chunk.root) / file.path
        try:
            content = _read(path)
            image = decode_bytes(content)
        except DecodeError as error:
            reason = f"{error.problem}. {error.next_step}" if error.next_step else error.problem
            unreadable.append({"path": printable(file.path), "code": error.code, "reason": reason})
            continue
        square = fit_square(image.pixels, chunk.size, chunk.fit)
        pixels.append(square)
        rows.append(
            {
                "image_id": hashlib.sha256(content + f"\0{file.path}\0{0}".encode()).hexdigest()[:16],
                "pixel_hash": hashlib.sha256(square.tobytes()).hexdigest()[:16],
                "label": file.label,
                "source": file.source,
                "patient_id": _patient(file.patient_id, image.patient_id),
                "split": file.split,
                "path": file.path,
                "view": file.view or image.view,
                "sex": file.sex or image.sex,
                "age": file.age if file.age is not None else image.age,
                "width": image.pixels.shape[1],
                "height": image.pixels.shape[0],
                "bit_depth": image.bit_depth,
                "dhash": difference_hash(image.pixels),
                "tint": image.tint,
                "quality_flags": [],
                **measure_quality(square),
                **file.extra,
            }
        )
    shape = (0, chunk.size, chunk.size)
    return ChunkResult(np.stack(pixels) if pixels else np.zeros(shape, np.uint8), rows, unreadable)


def _read(path: Path) -> bytes:
    if printable(str(path)) != str(path):
        raise DecodeError("has a name that is not UTF-8", next_step="Rename it", code="unreadable")
    try:
        if path.exists() and not path.is_file():  # a named pipe would keep the import waiting for ever
            raise DecodeError("is a folder or another thing that is not a file", code="unreadable")
        return path.read_bytes()
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror or error})", code="unreadable") from error


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
