"""Where things lie: a local path or a pyarrow/fsspec URI, read and written the same way."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from filelock import FileLock

from cxr_ray.errors import CxrError, DataError

_URI = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Whether the path carries a scheme (``s3://``, ``gs://``, ``file://`` ...)."""
    return bool(_URI.match(os.fspath(path)))


@dataclass(frozen=True)
class Location:
    """A file or folder on any file system; `child` walks down, the rest reads and writes whole files.

    Attributes:
        filesystem: A pyarrow file system.
        path: The path inside it, absolute.
        uri: What the user wrote (local paths made absolute), for messages and for other processes.
    """

    filesystem: pafs.FileSystem
    path: str
    uri: str

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def local(self) -> Path:
        """The location as a local path; only where `is_local`."""
        if not self.is_local:
            raise CxrError("is not on this machine's disk", where=self.uri)
        return Path(self.path)

    def child(self, *names: str) -> Location:
        tail = "/".join(names)
        address, options = self._split_uri()
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{tail}", f"{address.rstrip('/')}/{tail}{options}")

    @property
    def parent(self) -> Location:
        """The folder it lies in; a root or a bucket is its own."""
        above, slash, _ = self.path.rstrip("/").rpartition("/")
        if not slash:
            return self
        address, options = self._split_uri()
        root = "" if above else "/"
        return Location(self.filesystem, above + root, address.rstrip("/").rpartition("/")[0] + root + options)

    def _split_uri(self) -> tuple[str, str]:
        """The URI up to its options, and the options (``?region=...``), which belong to the file system."""
        if "?" in self.path:  # a file system without options took it for a part of the name
            return self.uri, ""
        address, mark, options = self.uri.partition("?")
        return address, mark + options

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound

    def is_dir(self) -> bool:
        return self.filesystem.get_file_info(self.path).type == pafs.FileType.Directory

    def children(self) -> list[str]:
        """Names of the entries of a folder, sorted; empty where there is none."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def read_json(self) -> Any:
        return json.loads(self.read_bytes())

    def write_bytes(self, content: bytes) -> None:
        """Write a whole file; a reader sees the old content or the new, never half of it."""
        if self.is_local:
            write_atomically(Path(self.path), content)
            return
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def write_json(self, value: Any) -> None:
        self.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def make_dir(self) -> None:
        self.filesystem.create_dir(self.path, recursive=True)

    def delete_dir(self) -> None:
        if self.is_dir():
            self.filesystem.delete_dir(self.path)


def locate(path: str | os.PathLike[str] | Location) -> Location:
    """Turn what a user wrote into a `Location`.

    Raises:
        CxrError: The scheme is unknown, its driver is not installed, an option in it is misspelt, or the storage
            does not answer.
    """
    if isinstance(path, Location):
        return path
    text = os.fspath(path)
    if not is_uri(text):
        absolute = os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 - keeps a trailing URI style
        return Location(pafs.LocalFileSystem(), absolute, absolute)
    try:
        filesystem, inner = pafs.FileSystem.from_uri(text)
        return Location(filesystem, inner, text)
    except pa.ArrowNotImplementedError:
        pass
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise CxrError(f"this address cannot be used ({_first_line(error)})", where=text) from error
    except OSError as error:
        # S3 is asked for the bucket's region.
        raise CxrError(
            f"this storage does not answer ({_first_line(error)})",
            where=text,
            next_step="Check the name, the region (?region=...), the credentials and the network",
        ) from error
    try:
        import fsspec

        fsspec_filesystem, inner = fsspec.core.url_to_fs(text)
    except Exception as error:  # every driver has errors of its own
        raise CxrError(
            f"no file system for this address ({_first_line(error)})",
            where=text,
            next_step="Use a local path, s3://, gs://, hdfs:// or any scheme whose fsspec driver is installed",
        ) from error
    return Location(pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_filesystem)), inner, text)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a local file so that its name never shows half of it, even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cache_root() -> Path:
    """The per-node cache for remote datasets and bundles (``CXR_CACHE``, default ``~/.cache/cxr_ray``)."""
    return Path(os.environ.get("CXR_CACHE", "~/.cache/cxr_ray")).expanduser()


def local_copy(location: Location, key: str, verify: Callable[[Path], None] | None = None) -> Path:
    """The location as a local folder; a remote one is copied once per node and kept under `key`.

    Args:
        location: A folder.
        key: Names the copy; the same content has the same key.
        verify: Looks at a fresh copy before it counts, and raises where it will not do. A folder that is local
            already is not copied, so not looked at.

    Raises:
        DataError: The remote folder cannot be copied, or the cache cannot be written.
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
            _copy(location, target, verify)
    finally:
        lock.release()
    return target


def _copy(location: Location, target: Path, verify: Callable[[Path], None] | None) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        try:
            partial.mkdir()
            pafs.copy_files(location.path, str(partial), source_filesystem=location.filesystem)
        except OSError as error:
            problem = f"cannot be copied to {target.parent} ({_first_line(error)})"
            raise DataError(problem, where=location.uri) from error
        if verify is not None:
            verify(partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
