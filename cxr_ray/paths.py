"""Where things lie: a local path or a pyarrow/fsspec URI, read and written the same way."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
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
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{tail}", f"{self.uri.rstrip('/')}/{tail}")

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
        CxrError: The scheme is unknown or its driver is not installed.
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
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        import fsspec

        fsspec_filesystem, inner = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise CxrError(
            f"no file system for this address ({error})",
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


def local_copy(location: Location, key: str) -> Path:
    """The location as a local folder; a remote one is copied once per node and kept under `key`.

    Raises:
        DataError: The remote folder cannot be copied.
    """
    if location.is_local:
        return location.local
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    target = root / key
    with FileLock(root / f"{key}.lock"):
        if target.is_dir():
            return target
        partial = root / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            pafs.copy_files(location.path, str(partial), source_filesystem=location.filesystem)
        except OSError as error:
            raise DataError(f"cannot be copied to this node ({error})", where=location.uri) from error
        partial.rename(target)
    return target
