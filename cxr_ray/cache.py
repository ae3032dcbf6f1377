"""This node's copies of remote folders: made once, verified, and gone on with where a copy was cut short."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow.fs as pafs
from filelock import FileLock

from cxr_ray.errors import DataError
from cxr_ray.paths import Location
from cxr_ray.progress import ProgressLine, progress

PIECE = 4 << 20  # bytes read at once: large enough for object stores, small enough to lose on an interruption
_MEGABYTE = 1e6
_WORTH_SHOWING = 100e6  # bytes; less is there before a display has been read
_ATTEMPTS = 3  # a network that drops a connection is asked again, from where it stopped


def cache_root() -> Path:
    """The per-node cache for remote datasets and bundles (``CXR_CACHE``, default ``~/.cache/cxr_ray``)."""
    return Path(os.environ.get("CXR_CACHE", "~/.cache/cxr_ray")).expanduser()


def local_copy(location: Location, key: str, sums: Mapping[str, str]) -> Path:
    """A folder's files on this machine: where they are local already, or copied once per node, kept under `key`.

    One process a node copies while the others wait. A copy counts when every file has its checksum; a copy that was
    interrupted is continued by the next process that needs it, inside the file it stopped in.

    Args:
        location: The folder.
        key: Names the copy; the same content has the same key.
        sums: The files to copy, each with its hex sha256.

    Raises:
        DataError: A file is missing or is not what its checksum says, the storage does not answer, or the cache
            cannot be written or is too full.
    """
    if location.is_local:
        return location.local
    root = cache_root()
    target = root / key
    if target.is_dir():  # its name appears when it is whole
        return target
    lock = FileLock(root / f"{key}.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(
            f"copies of remote folders cannot be kept here ({error.strerror or error})",
            where=root,
            next_step="Set CXR_CACHE to a folder that can be written",
        ) from error
    try:
        if not target.is_dir():
            _copy(location, target, sums)
    finally:
        lock.release()
    return target


def _copy(location: Location, target: Path, sums: Mapping[str, str]) -> None:
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(exist_ok=True)
    sizes = _sizes(location, sums)
    there = {name: (partial / name).stat().st_size for name in sums if (partial / name).is_file()}
    missing = sum(sizes.values()) - sum(there.values())
    free = shutil.disk_usage(partial).free
    if missing > free:
        raise DataError(
            f"the copy of {location} needs {missing / _MEGABYTE:,.1f} MB more, and {free / _MEGABYTE:,.1f} MB are free",
            where=target.parent,
            next_step="Make room, or set CXR_CACHE to a folder on a larger disk",
        )
    title = f"Copying {location.name} to this node, MB"
    with progress(title, round(sum(sizes.values()) / _MEGABYTE), quiet=missing < _WORTH_SHOWING) as line:
        for name, digest in sums.items():
            _copy_file(location.child(name), partial / name, sizes[name], digest, line)
    partial.rename(target)


def _sizes(location: Location, sums: Mapping[str, str]) -> dict[str, int]:
    paths = [location.child(name).path for name in sums]
    try:
        infos = location.filesystem.get_file_info(paths)
    except OSError as error:
        raise _unreachable(location, error) from error
    for name, info in zip(sums, infos, strict=True):
        if info.type != pafs.FileType.File:
            raise DataError(f"{name} is missing", where=location, next_step="Copy the folder there again")
    return {name: int(info.size) for name, info in zip(sums, infos, strict=True)}


def _copy_file(source: Location, target: Path, size: int, digest: str, line: ProgressLine) -> None:
    for attempt in range(_ATTEMPTS):
        hasher = hashlib.sha256()
        try:
            _append(source, target, size, hasher, line)
        except OSError as error:
            if attempt == _ATTEMPTS - 1:
                raise _unreachable(source, error) from error
            continue
        if hasher.hexdigest() == digest:
            return
        # Damaged on the way, or in an interrupted copy; what lies there cannot be told from what is good.
        line.advance(-target.stat().st_size / _MEGABYTE)
        target.unlink()
    raise DataError(
        f"{source.name} does not match its sha256 after copying it to this node",
        where=source.parent,
        next_step="Try again; if it stays so, the file is damaged there: copy or make it again",
    )


def _append(source: Location, target: Path, size: int, hasher: hashlib._Hash, line: ProgressLine) -> None:
    """Bring a file to its full size, starting behind what of it is there, and hash all of it."""
    with target.open("ab+") as stream:
        stream.seek(0)
        while piece := stream.read(PIECE):
            hasher.update(piece)
        done = stream.tell()
        shown = done
        line.advance(done / _MEGABYTE)
        try:
            if done < size:
                with source.filesystem.open_input_file(source.path) as remote:
                    remote.seek(done)
                    while done < size and (piece := remote.read(PIECE)):
                        stream.write(piece)
                        hasher.update(piece)
                        done += len(piece)
                        shown += len(piece)
                        line.advance(len(piece) / _MEGABYTE)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                stream.flush()
            line.advance(-shown / _MEGABYTE)
            raise


def _unreachable(location: Location, error: Exception) -> DataError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(
        f"cannot be copied to this node ({reason})",
        where=location,
        next_step="Check the network, the credentials and the room in CXR_CACHE, and try again: what is here is kept",
    )
