"""Films inside a NumPy ``.npz`` archive, one after the other, however large the archive is."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from cxr_ray.data.decode_image import MAX_PIXELS, check_size
from cxr_ray.errors import DataError, DecodeError
from cxr_ray.paths import Location

_PIECE = 1 << 20  # bytes read at a time: object storage charges for each request
_MAX_CLASSES = 1000  # in a row of labels; more would only fill memory
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what zipfile and NumPy raise


class NpzImages:
    """The arrays ``image`` (N, H, W[, C]) and ``image_label`` (N) of an archive; names are matched loosely.

    Nothing is unpickled, and one image at a time is in memory. Archives of `numpy.savez` and of
    `numpy.savez_compressed` are read forward, so an image far behind costs those before it: 0.2 s a gigabyte of the
    first, 2 s a gigabyte of the second.

    Args:
        location: The archive, local or remote.

    Attributes:
        count: Images in it.
        shape: (N, H, W) or (N, H, W, C), with C 1 or 3.
        dtype: uint8 or floating point.
        labels: int64, (count,); of one-hot rows the place of the 1.

    Raises:
        DataError: It is no such archive, or its arrays do not fit each other.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        with self._opened() as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            self._member = self._named(names, ("image", "images"))
            with archive.open(self._member) as stream:
                self.shape, self.dtype, self._header = self._read_header(stream)
            self._check_images(archive.getinfo(self._member).file_size)
            self.count = self.shape[0]
            with archive.open(self._named(names, ("image_label", "image_labels", "label", "labels"))) as stream:
                self.labels = self._read_labels(stream)

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Images `start` to `stop`, (H, W) or (H, W, C) each, read-only, in the archive's own type.

        Raises:
            DataError: The archive is damaged, or ends before the last of them.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._opened() as archive, archive.open(self._member) as stream:
            stream.seek(self._header + start * size)
            for number in range(start, stop):
                content = stream.read(size)
                if len(content) < size:
                    raise self._error(f"ends before its image {number}")
                yield np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            remote: Any = self._location.filesystem.open_input_file(self._location.path)
            # zipfile reads in small steps.
            with remote, zipfile.ZipFile(io.BufferedReader(remote, _PIECE)) as archive:
                yield archive
        except _BROKEN as error:
            raise self._error(f"cannot be read as an .npz archive ({error or type(error).__name__})") from error

    def _named(self, names: list[str], wanted: tuple[str, ...]) -> str:
        plain = {name.removesuffix(".npy").strip().lower().replace(" ", "_"): name for name in names}
        for name in wanted:
            if name in plain:
                return plain[name]
        problem = f"holds no array '{wanted[0]}'; it has {', '.join(sorted(plain)) or 'none'}"
        raise self._error(problem, "Expected the arrays image and image_label")

    def _read_header(self, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise self._error("holds Python objects, which are never unpickled", "Save the arrays as numbers")
        if fortran and len(shape) > 1:
            raise self._error("is stored in Fortran order, in which no image lies in one piece", "Save it in C order")
        return shape, dtype, stream.tell()

    def _check_images(self, size: int) -> None:
        shape = self.shape
        is_film = self.dtype == np.uint8 or np.issubdtype(self.dtype, np.floating)
        if not is_film or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise self._error(
                f"holds images of type {self.dtype} and shape {shape}",
                "Expected uint8 or floating point, (N, height, width) or (N, height, width, 1 or 3)",
            )
        if size != self._header + math.prod(shape) * self.dtype.itemsize:
            raise self._error(f"says that its images are of shape {shape}, and holds {size:,} bytes of them")
        try:
            check_size(shape[2], shape[1], size, MAX_PIXELS)
        except DecodeError as error:
            raise self._error(f"holds images of which each {error.problem}") from error

    def _read_labels(self, stream: IO[bytes]) -> np.ndarray:
        shape, dtype, _ = self._read_header(stream)
        classes = math.prod(shape[1:])
        is_label = dtype.kind in "biuf" and len(shape) in (1, 2) and shape[0] == self.count
        if not is_label or not 1 <= classes <= _MAX_CLASSES:
            raise self._error(
                f"has labels of type {dtype} and shape {shape} for {self.count} images",
                "Expected one number or one row of zeros and a one an image",
            )
        values = np.frombuffer(stream.read(math.prod(shape) * dtype.itemsize), dtype)
        if len(values) != math.prod(shape) or (values != np.round(values)).any():
            raise self._error("has labels that are not whole numbers, one an image")
        if classes == 1:
            return values.astype(np.int64)
        rows = values.reshape(shape)
        if ((rows != 0).sum(axis=1) != 1).any() or (rows.max(axis=1) != 1).any():
            raise self._error("has rows of labels that are not zeros and a single one")
        return rows.argmax(axis=1).astype(np.int64)

    def _error(self, problem: str, next_step: str | None = None) -> DataError:
        return DataError(problem, where=self._location, next_step=next_step)
