"""Where things lie: a local path or a pyarrow/fsspec URI, read and written the same way."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from cxr_ray.errors import CxrError, DataError

_URI = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
# A number behind the colon is a port. Keys of S3 may hold slashes.
_PASSWORD = re.compile(r"^([^:/]+://[^:/@]*:)(?!\d+(?:/|$)).*(?=@)")
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:secret|password|token|signature|key)[^=&]*=)[^&]*", re.IGNORECASE)


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Whether the path carries a scheme (``s3://``, ``gs://``, ``file://`` ...)."""
    return bool(_URI.match(os.fspath(path)))


@dataclass(frozen=True, slots=True)
class Entry:
    """A file below a folder.

    Attributes:
        path: Relative to the folder, with ``/``.
        size: In bytes; -1 for a link that leads nowhere.
        modified_ns: When it was last changed, nanoseconds since 1970; 0 where the storage does not say.
    """

    path: str
    size: int
    modified_ns: int


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

    def walk(self) -> Iterator[Entry]:
        """The files below the folder, folder by folder in the order of their names, links followed.

        Hidden names and ``__MACOSX`` are passed over, and a link back to a folder it lies in is not entered again.

        Raises:
            DataError: A folder cannot be read.
        """
        if self.is_local:
            yield from _walk_local(Path(self.path), "", frozenset())
            return
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except OSError as error:
            raise DataError(f"cannot be read ({_first_line(error)})", where=self.uri) from error
        inside = len(self.path.rstrip("/")) + 1
        found = ((info.path[inside:], info) for info in infos if info.type == pafs.FileType.File)
        for path, info in sorted(found, key=lambda pair: pair[0].split("/")):
            if not any(_is_passed_over(name) for name in path.split("/")):
                yield Entry(path, info.size, info.mtime_ns or 0)

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
        CxrError: The scheme is unknown, its driver is not installed, an option in it is misspelt, the storage does
            not answer, or the address carries a password.
    """
    if isinstance(path, Location):
        return path
    text = os.fspath(path)
    shown = _SECRET_OPTION.sub(r"\1***", _PASSWORD.sub(r"\1***", text))
    if is_uri(text) and shown != text:
        raise CxrError(
            "this address carries a password, which every report and model card made from there would repeat",
            where=shown,
            next_step="Give it in the environment of every node instead (for s3:// as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY)",
        )
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


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """The local path without ``~``, links and dots.

    Raises:
        DataError: It is an address, or its name is not UTF-8, so that neither a manifest nor a report could hold it.
    """
    if is_uri(path):
        raise DataError(
            "is an address, and this needs a folder on this machine",
            where=os.fspath(path),
            next_step="Name a local folder; a finished dataset is sent elsewhere with: cxr-ray data push DATASET URI",
        )
    # Path.expanduser and Path.resolve raise RuntimeError for an unknown user and for links in a circle.
    text = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111
    if printable(text) != text:
        raise DataError("has a name that is not UTF-8", where=printable(text), next_step="Rename it")
    return Path(text)


def printable(name: str) -> str:
    """A file's name for messages and reports: bytes that are not UTF-8 become ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk_local(folder: Path, inside: str, above: frozenset[str]) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"the folder cannot be read ({error.strerror or error})",
            where=printable(str(folder)),
            next_step="Make it readable, or move it out of the source folder",
        ) from error
    for entry in entries:
        if _is_passed_over(entry.name):
            continue
        try:
            status = entry.stat()
        except OSError:  # a link to nothing is a film that is missing, so it is listed
            yield Entry(inside + entry.name, -1, 0)
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk_local(folder / entry.name, f"{inside}{entry.name}/", above | {real})
        elif stat.S_ISREG(status.st_mode):
            yield Entry(inside + entry.name, status.st_size, status.st_mtime_ns)


def _is_passed_over(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
