"""Unpacking archives that strangers made: into one folder, whole or not at all."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from cxr_ray.data.download import size_text
from cxr_ray.errors import DataError
from cxr_ray.progress import ProgressLine

MAX_MEMBERS = 500_000
MAX_BYTES = 500_000_000_000  # the largest public set of chest radiographs at full size
_PIECE = 1 << 20
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
_OF_THE_ARCHIVE = (None, errno.EEXIST, errno.ENOTDIR)  # errors its member's names cause


def unpack_zip(archive: Path, folder: Path, line: ProgressLine) -> int:
    """Unpack a ZIP archive; the folder's name appears when all of it is there.

    Args:
        archive: The archive.
        folder: The folder to make; what lies there already is taken for a former, whole unpacking and kept.
        line: Counts the files.

    Returns:
        How many files the folder got.

    Raises:
        DataError: A member leads out of the folder, is a link, encrypted or damaged, or there are too many, or they
            are too large for the disk.
    """
    if folder.is_dir():
        return 0
    partial = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check(archive, members, shutil.disk_usage(archive.parent).free)
            partial.mkdir(parents=True)
            line.update(0, "files unpacked", total=len(members))
            for number, member in enumerate(members):
                target = partial / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                # Exclusive: two members of one name are a trick or a mistake.
                with opened.open(member) as content, target.open("xb") as stream:
                    shutil.copyfileobj(content, stream, _PIECE)
                line.update(number + 1, "files unpacked")
        partial.rename(folder)
    except (*_DAMAGED, OSError) as error:
        # What fails without a number is the content, not the disk.
        if isinstance(error, OSError) and error.errno not in _OF_THE_ARCHIVE:
            raise
        raise DataError(
            f"cannot be unpacked ({error or type(error).__name__})",
            where=archive,
            next_step="Remove it and fetch it again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(members)


def _check(archive: Path, members: list[zipfile.ZipInfo], free: int) -> None:
    """Refuse the archive before a byte of it is unpacked."""
    for member in members:
        if problem := _problem(member):
            raise DataError(
                f"holds the member {member.filename!r}, which {problem}",
                where=archive,
                next_step="Do not unpack it by other means; tell the set's authors",
            )
    size = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or size > MAX_BYTES:
        raise DataError(
            f"holds {len(members):,} files of {size_text(size)} in all, more than the {MAX_MEMBERS:,} files or "
            f"{size_text(MAX_BYTES)} that a set of films has",
            where=archive,
        )
    if size > free:
        raise DataError(
            f"the disk is too full: what is in it takes {size_text(size)}, and {size_text(free)} are free",
            where=archive,
            next_step="Make room and run the same command again",
        )


def _problem(member: zipfile.ZipInfo) -> str | None:
    # zipfile has already turned backslashes to slashes where they part folders.
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts:
        return "leads out of the folder"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "is a link or another thing that is not a file"
    if member.flag_bits & 0x1:
        return "is encrypted"
    return None
