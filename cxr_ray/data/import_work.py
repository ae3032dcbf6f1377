"""An import under way: the hidden folder it builds in, the shards it has finished, and what it takes to go on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray.data.dataset_folder import MARKS, make_folder
from cxr_ray.data.dataset_writer import manifest_table
from cxr_ray.data.import_chunk import Chunk, ChunkResult, decode_chunk
from cxr_ray.data.listing import LUNG_MASK, SourceFile
from cxr_ray.data.mapping import Mapper
from cxr_ray.data.npz import NpzImages
from cxr_ray.data.resize import Fit
from cxr_ray.data.shards import SHARD_IMAGES, Shard, ShardWriter, file_sha256
from cxr_ray.data.store import read_rows, work_folder
from cxr_ray.errors import DataError
from cxr_ray.paths import Location, write_atomically
from cxr_ray.progress import ProgressLine, progress

CHUNK_IMAGES = 32  # a unit of parallel work: about a second of decoding
_ROW_BYTES = 1024  # of a film besides its pixels: in the manifest and in the import's notes


@dataclass
class Decoded:
    """The films of an import after decoding, in the order of the listing.

    Attributes:
        manifest: A row each; splits as given, duplicate groups and flags still empty.
        shards: Their pixel files.
        lung_mask_shards: Files of lung masks, parallel to `shards`; empty where the set has none.
        unreadable: ``path``, ``code``, ``reason`` of films that cannot be decoded.
        set_aside: ``path`` and ``reason`` of films that are not wanted.
    """

    manifest: pa.Table
    shards: list[Shard] = field(default_factory=list)
    lung_mask_shards: list[Shard] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    set_aside: list[dict[str, str]] = field(default_factory=list)


class ImportWork:
    """The folder an import builds in; a context manager that keeps other imports out of it.

    Attributes:
        source: The folder that holds the films.
        folder: Where the dataset is built.
        films: How many there are.
        size: Edge of the squares, pixels.
        fit: How a film becomes a square.

    Args:
        source: The folder that holds the films.
        target: The dataset folder to become.
        files: The films, in their final order.
        size: Edge of the squares, pixels.
        fit: How a film becomes a square.
    """

    def __init__(self, source: Location, target: Path, files: list[SourceFile], size: int, fit: Fit) -> None:
        self.source = source
        self.folder = work_folder(target)
        self._files = files
        self.films = len(files)
        self.size = size
        self.fit: Fit = fit
        self._lung_masks = any(LUNG_MASK in file.extra for file in files)
        self._extra = sorted({name for file in files for name in file.extra})
        self._frames = _FrameStream(source)
        self._lock = -1

    def __enter__(self) -> Self:
        if not self.folder.exists():
            make_folder(self.folder)
        # The lock is on the folder itself: nothing has to be tidied away, and the system lifts a killed import's.
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self.folder.exists() or os.fstat(self._lock).st_ino != self.folder.stat().st_ino:
                raise BlockingIOError  # the other import has just finished
            self._agree_on_plan()
        except BlockingIOError as error:
            os.close(self._lock)
            raise DataError(
                "another import is writing this dataset",
                where=self.folder.parent / self.folder.name.removeprefix(".").removesuffix(".importing"),
                next_step="Wait for it, or choose another folder",
            ) from error
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def bytes_needed(self) -> int:
        """Of disk for the whole dataset."""
        pixels = self.size**2 * (2 if self._lung_masks else 1)
        return self.films * (pixels + _ROW_BYTES)

    @property
    def bytes_there(self) -> int:
        """Of the dataset on disk already."""
        return sum(path.stat().st_size for path in self.folder.glob("*.npy"))

    def decode(self, run: Mapper, *, quiet: bool) -> Decoded:
        """Decode every film that no finished shard holds yet.

        Args:
            run: Decodes chunks, in order, perhaps in parallel.
            quiet: No progress display.

        Raises:
            DataError: There is too little room on the disk.
        """
        parts = [self._files[start : start + SHARD_IMAGES] for start in range(0, self.films, SHARD_IMAGES)]
        states = self._states()
        digests = [_digest([[asdict(file), *map(states.get, _paths(file))] for file in part]) for part in parts]
        states.clear()
        done = {number: self._finished(number, digests[number], parts[number]) for number in range(len(parts))}
        pending = [number for number, marks in done.items() if marks is None]
        self._check_room()
        results = iter(run(decode_chunk, self._chunks(parts, pending)))
        bad = sum(len(marks["unreadable"]) for marks in done.values() if marks)
        with progress("Importing", self.films, quiet=quiet) as line:
            line.advance(sum(len(parts[number]) for number in done if number not in pending))
            for number in pending:
                marks = self._decode_shard(number, digests[number], len(parts[number]), results, line, bad)
                bad += len(marks["unreadable"])
                done[number] = marks
        return self._collect([marks for _, marks in sorted(done.items()) if marks is not None])

    def drop_leftovers(self, decoded: Decoded) -> None:
        """Remove pixel files that an interrupted import left and the dataset has no use for."""
        wanted = {shard.file for shard in (*decoded.shards, *decoded.lung_mask_shards)}
        for path in self.folder.glob("*.npy*"):
            if path.name not in wanted:
                path.unlink()
        for path in self.folder.glob(".*"):  # shards and files that a killed process had half written
            if path.name != MARKS:
                path.unlink()

    def _agree_on_plan(self) -> None:
        """Keep what an interrupted import has finished if it followed the same plan, else start with nothing."""
        plan = _digest([self.source.uri, self.size, self.fit, SHARD_IMAGES, self._lung_masks, self._extra])
        marked = self.folder / MARKS / "plan"
        if marked.is_file() and marked.read_text() == plan:
            return
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        make_folder(self.folder / MARKS)
        write_atomically(marked, plan.encode())

    def _states(self) -> dict[str, list[int]]:
        """Size and time of every file below the source: what tells that a film has changed since a shard was made."""
        states = {entry.path: [entry.size, entry.modified_ns] for entry in self.source.walk()}
        # A sheet may name films in hidden folders, which a walk passes over.
        for path in (path for file in self._files for path in _paths(file) if path not in states):
            info = self.source.filesystem.get_file_info(self.source.child(path).path)
            states[path] = [info.size or 0, info.mtime_ns or 0]
        return states

    def _finished(self, number: int, digest: str, files: list[SourceFile]) -> dict[str, Any] | None:
        """What is noted of a finished shard; None where it is not whole, or would become another one now."""
        notes = self.folder / MARKS / f"shard-{number:05d}.json"
        if not notes.exists():
            return None
        marks = json.loads(notes.read_text())
        shards = [Shard.model_validate(marks[key]) for key in ("shard", "lung_mask_shard") if marks[key]]
        whole = marks["digest"] == digest and all(
            (path := self.folder / shard.file).is_file() and file_sha256(path) == shard.sha256 for shard in shards
        )
        return marks if whole and not self._readable_now(marks, files) else None

    def _readable_now(self, marks: dict[str, Any], files: list[SourceFile]) -> bool:
        """Whether a film that could not be read can be: a decoder was installed, or a permission given."""
        numbers = marks["unreadable_numbers"]
        if not numbers:
            return False
        retry = self._chunk([files[number] for number in numbers])
        return bool(len(decode_chunk(retry).unreadable) < len(numbers))

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        missing = self.bytes_needed - self.bytes_there
        if missing > free:
            raise _too_little_room(self, free)

    def _chunks(self, parts: list[list[SourceFile]], pending: list[int]) -> Iterator[Chunk]:
        for number in pending:
            part = parts[number]
            for start in range(0, len(part), CHUNK_IMAGES):
                yield self._chunk(part[start : start + CHUNK_IMAGES])

    def _chunk(self, files: list[SourceFile]) -> Chunk:
        of_archives = all(file.path.endswith(".npz") for file in files)
        frames = [self._frames.read(file) for file in files] if of_archives else None
        return Chunk(self.source.uri, tuple(files), self.size, self.fit, frames, self._lung_masks)

    def _decode_shard(
        self, number: int, digest: str, films: int, results: Iterator[ChunkResult], line: ProgressLine, bad: int
    ) -> dict[str, Any]:
        pixels = ShardWriter(self.folder, f"pixels-{number:05d}.npy", self.size)
        masks = ShardWriter(self.folder, f"lung-masks-{number:05d}.npy", self.size) if self._lung_masks else None
        tables = [manifest_table([], self._extra)]
        marks: dict[str, Any] = {"digest": digest, "unreadable": [], "unreadable_numbers": [], "set_aside": []}
        try:
            for start in range(0, films, CHUNK_IMAGES):
                result = next(results)
                pixels.append(result.pixels)
                if masks is not None and result.lung_masks is not None:
                    masks.append(result.lung_masks)
                tables.append(manifest_table(result.rows, self._extra))  # here, while the workers decode
                marks["unreadable"] += result.unreadable
                marks["unreadable_numbers"] += [start + number for number in result.unreadable_numbers]
                marks["set_aside"] += result.set_aside
                count = bad + len(marks["unreadable"])
                line.advance(min(CHUNK_IMAGES, films - start), f"{count} unreadable" if count else "")
            marks["shard"] = pixels.finish().model_dump()
            marks["lung_mask_shard"] = masks.finish().model_dump() if masks else None
        except BaseException:
            for writer in (pixels, masks):
                if writer is not None:
                    writer.abandon()
            raise
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables).combine_chunks(), sink, compression="zstd")
        write_atomically(self.folder / MARKS / f"rows-{number:05d}.parquet", sink.getvalue().to_pybytes())
        # Last: from now on the shard counts.
        write_atomically(self.folder / MARKS / f"shard-{number:05d}.json", json.dumps(marks).encode())
        return marks

    def _collect(self, marks: list[dict[str, Any]]) -> Decoded:
        tables = [read_rows(self.folder / MARKS / f"rows-{number:05d}.parquet") for number in range(len(marks))]
        manifest = pa.concat_tables(tables).combine_chunks()
        tables.clear()
        pa.default_memory_pool().release_unused()  # three times the manifest, which Arrow would keep
        return Decoded(
            manifest=manifest,
            shards=[Shard.model_validate(mark["shard"]) for mark in marks if mark["shard"]["images"]],
            lung_mask_shards=[
                Shard.model_validate(mark["lung_mask_shard"])
                for mark in marks
                if mark["lung_mask_shard"] and mark["lung_mask_shard"]["images"]
            ],
            unreadable=[entry for mark in marks for entry in mark["unreadable"]],
            set_aside=[entry for mark in marks for entry in mark["set_aside"]],
        )


class _FrameStream:
    """Films of files that hold many, read one after the other: a compressed one has no other way."""

    def __init__(self, source: Location) -> None:
        self._source = source
        self._path = ""
        self._next = 0
        self._frames: Iterator[np.ndarray] = iter(())

    def read(self, file: SourceFile) -> np.ndarray:
        """uint8 or floating point, (H, W) or (H, W, C)."""
        if file.path != self._path or file.frame < self._next:
            images = NpzImages(self._source.child(file.path))
            self._path, self._next = file.path, file.frame
            self._frames = images.frames(file.frame, images.count)
        while self._next < file.frame:
            next(self._frames)
            self._next += 1
        self._next += 1
        return next(self._frames)


@contextlib.contextmanager
def full_disk_explained(work: ImportWork) -> Iterator[None]:
    """Turn a disk that fills while an import runs into a message; what is finished stays for the next attempt.

    Raises:
        DataError: With the space needed and the space there.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _too_little_room(work, shutil.disk_usage(work.folder).free) from error


def _too_little_room(work: ImportWork, free: int) -> DataError:
    there = work.bytes_there
    also = f", of which {_size(there)} are there" if there else ""
    return DataError(
        f"the disk is too full: the dataset needs {_size(work.bytes_needed)}{also}, and {_size(free)} are free",
        where=work.folder.parent,
        next_step="Make room and run the same command again, which goes on where this one stopped, or choose "
        "another disk or a smaller --size",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _paths(file: SourceFile) -> list[str]:
    """The files a film is made of: its own and its lung masks."""
    return [file.path, *filter(None, file.extra.get(LUNG_MASK, "").split("|"))]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
