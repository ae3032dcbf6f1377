"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.fs as pafs

from cxr_ray.errors import DataError
from cxr_ray.paths import Location, locate


def free_folder(
    out: str | Path, *, marker: str, contents: Callable[[bytes], Container[str]], overwrite: bool
) -> Location:
    """Check, before any work is done, that a folder may be written.

    Args:
        out: Local path or URI.
        marker: The file that tells a former output of the same kind (``report.json``).
        contents: The names a former output holds, given its marker's content; with anything else in it, a
            folder is never replaced.
        overwrite: Whether a former output may be replaced.

    Raises:
        DataError: `out` is a file, holds something else, or a former output while `overwrite` is False.
    """
    location = locate(out)
    if not location.exists():
        return location
    if not location.is_dir():
        raise DataError("is a file", where=location, next_step="Choose a folder that does not exist yet")
    names = location.children()
    if not names:
        return location
    ours = contents(location.child(marker).read_bytes()) if marker in names else ()
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise DataError(
            f"holds '{foreign[0]}', which is not ours to replace",
            where=location,
            next_step="Choose a new or an empty folder",
        )
    if not overwrite:
        raise DataError(
            f"already holds a finished output ({marker})",
            where=location,
            next_step="Give --overwrite to replace it, or choose another folder",
        )
    return location


@contextmanager
def whole_folder(location: Location, *, marker: str) -> Iterator[Path]:
    """A temporary local folder that becomes `location` when the ``with`` block ends without an error.

    Args:
        location: From `free_folder`.
        marker: Written last where the file system cannot rename folders, so that a reader who finds it
            finds the rest.

    Raises:
        DataError: The folder, or a file in it, cannot be written.
    """
    partial: Path | None = None
    try:
        partial = _partial(location)
        yield partial
        if location.is_local:
            _replace(partial, location.local)
        else:
            _upload(partial, location, marker)
    except OSError as error:
        # A full disk mostly, whichever of the folder's files it struck.
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        raise DataError(
            f"cannot be written ({what})", where=location, next_step="Make room there, or choose another folder"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def file_name(name: str, number: int) -> str:
    """A class's name as part of a file's name: as it is where it is plain, else cleaned and told apart by number."""
    plain = re.sub(r"[^\w.-]+", "_", name)[:60]
    return plain if plain == name and not plain.startswith(".") else f"{number}-{plain}"


def _partial(location: Location) -> Path:
    if not location.is_local:
        return Path(tempfile.mkdtemp(prefix="cxr-ray-"))
    target = location.local
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def _replace(partial: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        partial.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _upload(partial: Path, location: Location, marker: str) -> None:
    with suppress(FileNotFoundError):
        location.delete_dir()
    content = (partial / marker).read_bytes()
    (partial / marker).unlink()
    location.make_dir()
    pafs.copy_files(str(partial), location.path, destination_filesystem=location.filesystem)
    location.child(marker).write_bytes(content)
