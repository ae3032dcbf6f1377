"""Files of pixels: one ``.npy`` holds some thousand images, is written once, and is read where it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

SHARD_IMAGES = 2048  # 100 MB at 224 px: small enough to redo, large enough to map few files
_HEADER = 128  # bytes that NumPy's format takes for three dimensions of any length that fits on a disk


class Shard(BaseModel):
    """One file of pixels: its name, how many images it holds, and the sha256 of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    images: int
    sha256: str


class PixelStore:
    """Images of a dataset by row number, memory-mapped; cheap to send to another process.

    Args:
        root: The dataset's folder on this machine.
        shards: Its pixel files, in order.
    """

    def __init__(self, root: Path, shards: Iterable[Shard]) -> None:
        self._files = [(root / shard.file, shard.images) for shard in shards]
        self._starts = np.cumsum([0] + [images for _, images in self._files])
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8, (size, size), read-only view of image `row`."""
        shard = self._shard_of(row)
        if shard not in self._maps:
            self._maps[shard] = np.load(self._files[shard][0], mmap_mode="r")
        return self._maps[shard][row - self._starts[shard]]

    def __getstate__(self) -> dict[str, Any]:
        # A memory map pickles as its content; the receiving process opens its own.
        return {**self.__dict__, "_maps": {}}

    def block(self, start: int, stop: int) -> np.ndarray:
        """uint8, (stop - start, size, size): images of neighbouring rows as a copy.

        Read as a file, not through the memory map, whose pages would count as this process's memory until
        something else needs them.
        """
        parts = []
        while start < stop:
            shard = self._shard_of(start)
            path, images = self._files[shard]
            first = start - int(self._starts[shard])
            count = min(stop - start, images - first)
            with path.open("rb") as stream:
                size = _read_header(stream)[1]
                stream.seek(first * size * size, os.SEEK_CUR)
                part = np.fromfile(stream, np.uint8, count * size * size)
            parts.append(part.reshape(count, size, size))
            start += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def blocks(self, images: int = 512) -> Iterator[tuple[int, np.ndarray]]:
        """All images in pieces: the row number of the first, and uint8 (at most `images`, size, size)."""
        for start in range(0, len(self), images):
            yield start, self.block(start, min(len(self), start + images))

    def _shard_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


class ShardWriter:
    """Writes one shard piece by piece; its name appears when `finish` has made it whole.

    Args:
        folder: Where to write.
        file: The shard's name.
        size: Edge of its images in pixels.
    """

    def __init__(self, folder: Path, file: str, size: int) -> None:
        self._file = file
        self._size = size
        self._target = folder / file
        self._temporary = folder / f".{file}.partial"
        self._images = 0
        self._stream = self._temporary.open("wb")
        _write_header(self._stream, 0, size)

    def append(self, images: np.ndarray) -> None:
        """Add images: uint8, (n, size, size)."""
        self._stream.write(np.ascontiguousarray(images).data)
        self._images += len(images)

    def finish(self) -> Shard:
        """Put the number of images into the header, flush to disk, and give the file its name."""
        self._stream.seek(0)
        _write_header(self._stream, self._images, self._size)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        digest = file_sha256(self._temporary)
        self._temporary.replace(self._target)
        return Shard(file=self._file, images=self._images, sha256=digest)

    def abandon(self) -> None:
        """Give up: nothing stays."""
        self._stream.close()
        self._temporary.unlink(missing_ok=True)


def write_shard(folder: Path, file: str, images: np.ndarray) -> Shard:
    """Write one shard of images at once (uint8, (images, size, size))."""
    writer = ShardWriter(folder, file, images.shape[1])
    writer.append(images)
    return writer.finish()


def shard_shape(path: Path) -> tuple[int, int] | None:
    """Images and edge of a shard by its header; None where that makes no sense, or the file is not of that size."""
    try:
        with path.open("rb") as stream:
            images, size = _read_header(stream)
            start = stream.tell()
    except (ValueError, TypeError, SyntaxError):  # what NumPy raises
        return None
    return (images, size) if path.stat().st_size == start + images * size * size else None


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_header(stream: Any, images: int, size: int) -> None:
    # The number of images is known at the end only, so the header must not change its length.
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({images}, {size}, {size}), }}"
    prefix = np.lib.format.magic(1, 0)
    length = _HEADER - len(prefix) - 2
    stream.write(prefix + length.to_bytes(2, "little") + text.ljust(length - 1).encode("latin1") + b"\n")


def _read_header(stream: Any) -> tuple[int, int]:
    np.lib.format.read_magic(stream)
    images, size, _ = np.lib.format.read_array_header_1_0(stream)[0]
    return images, size
