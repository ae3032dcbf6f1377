"""Downloads that go on where they were interrupted, which pooch alone cannot do."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import requests

from cxr_ray.errors import DataError
from cxr_ray.paths import write_atomically
from cxr_ray.progress import ProgressLine

_PIECE = 1 << 16  # bytes written at a time; of the piece at which a connection ends, nothing is kept
_TIMEOUT_S = (10, 60)  # to connect, and between two pieces
_ATTEMPTS = 4  # without a byte in between, before giving up
WAIT_S = 0.5  # before the second attempt; doubled before each further one
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers of a server that may do better in a moment


class ResumingDownload:
    """A downloader for `pooch.retrieve`: what came lies beside the target in ``.<name>.partial`` until `forget`.

    A file that was begun goes on with an HTTP range request (RFC 9110 section 14), provided that the server still
    has the same file by its validator and its size, and starts again where the server cannot do that.

    Args:
        target: The file to become.
        line: Shows the size first, then the progress in MB.
        copies: How often the size must fit on the disk: 2 for an archive that is to be unpacked.
    """

    def __init__(self, target: Path, line: ProgressLine, copies: int = 1) -> None:
        self._target = target
        self._partial = target.with_name(f".{target.name}.partial")
        self._notes = target.with_name(f".{target.name}.partial.json")
        self._line = line
        self._copies = copies
        self._announced = False

    def __call__(self, url: str, output_file: str | os.PathLike[str], pooch: Any) -> None:
        """Download `url` to `output_file`; `pooch` is not used.

        Raises:
            DataError: The server does not answer, does not have the file, or the disk has too little room.
        """
        fruitless, problem = 0, ""
        while not self._is_whole(url):
            before = self._size()
            try:
                self._go_on(url)
            except requests.RequestException as error:
                problem = _reason(error)
            except KeyboardInterrupt:
                self._line.say(f"{size_text(self._size())} of {self._target.name} stay for the next attempt")
                raise
            fruitless = fruitless + 1 if self._size() <= before else 0
            if fruitless == _ATTEMPTS:
                came = f" after {size_text(self._size())}" if self._size() else ""
                raise DataError(
                    f"cannot be downloaded{came} ({problem or 'the connection ends again and again'})",
                    where=url,
                    next_step="The same command goes on from there" if came else "Check the network, or try later",
                )
            if fruitless:
                time.sleep(WAIT_S * 2 ** (fruitless - 1))
        # A link, so that an interruption while pooch compares the checksum costs nothing.
        Path(output_file).unlink(missing_ok=True)
        try:
            os.link(self._partial, output_file)
        except OSError:  # not every file system has links
            shutil.move(self._partial, output_file)

    def forget(self) -> None:
        """Remove what came, as the target is there or what came is of no use."""
        self._partial.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _is_whole(self, url: str) -> bool:
        notes = self._read_notes(url)
        return bool(notes.get("whole")) and self._partial.exists() and self._size() == notes["size"]

    def _go_on(self, url: str) -> None:
        """One request: add to what is there, as far as the connection lasts."""
        notes = self._read_notes(url)
        have = self._size() if notes else 0
        headers = {"Accept-Encoding": "identity"}  # sizes and ranges are of the file, not of a compressed form of it
        if have:
            headers["Range"] = f"bytes={have}-"
            if notes["validator"]:
                headers["If-Range"] = notes["validator"]
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
            if answer.status_code in _BUSY:
                raise requests.ConnectionError(f"the server answers {answer.status_code} {answer.reason}")
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                self.forget()  # shorter than what is here, so another file
                return
            if not answer.ok:
                raise DataError(
                    f"cannot be downloaded: the server answers {answer.status_code} {answer.reason}", where=url
                )
            start, total = _content_range(answer)
            if start and (start != have or total != notes.get("size")):
                self.forget()
                return
            validator = answer.headers.get("ETag", "")
            if not validator or validator.startswith("W/"):  # weak ones do not promise equal bytes
                validator = answer.headers.get("Last-Modified", "")
            notes = {"url": url, "validator": validator, "size": total, "whole": False}
            self._announce(url, start, total)
            with self._partial.open("ab" if start else "wb") as stream:
                write_atomically(self._notes, json.dumps(notes).encode())
                for piece in answer.iter_content(_PIECE):
                    stream.write(piece)
                    self._line.update(round(stream.tell() / 1e6), "MB")
                stream.flush()
                os.fsync(stream.fileno())
            if total is None or self._size() == total:
                write_atomically(self._notes, json.dumps(notes | {"size": self._size(), "whole": True}).encode())

    def _announce(self, url: str, start: int, total: int | None) -> None:
        """Show the size, and make sure of the room, before the first byte is written."""
        if self._announced:
            return
        self._announced = True
        going_on = f", going on at {size_text(start)}" if start else ""
        size = "of unknown size" if total is None else size_text(total)
        self._line.say(f"{self._target.name}: {size} from {url} to {self._target.parent}{going_on}")
        if total is None:
            return
        self._line.update(round(start / 1e6), "MB", total=round(total / 1e6))
        free = shutil.disk_usage(self._target.parent).free
        missing = total * self._copies - start
        if missing > free:
            why = " (the archive, and as much again for what is in it)" if self._copies > 1 else ""
            raise DataError(
                f"the disk is too full: {size_text(missing)} are needed{why}, and {size_text(free)} are free",
                where=self._target.parent,
                next_step="Make room, or choose another folder with --out",
            )

    def _size(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _read_notes(self, url: str) -> dict[str, Any]:
        """What is known of the file that was begun; nothing where it was another's."""
        try:
            notes = json.loads(self._notes.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return notes if notes.get("url") == url else {}


def size_text(count: int) -> str:
    """A number of bytes for people: ``616.9 MB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _content_range(answer: requests.Response) -> tuple[int, int | None]:
    """Where the content begins in the file, and how long the file is, None where the server does not say."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status_code == requests.codes.partial_content and match:
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _reason(error: requests.RequestException) -> str:
    """The innermost cause, which says it in plainer words than the pools around it."""
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    return str(cause).partition("\n")[0] or type(cause).__name__
