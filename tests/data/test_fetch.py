"""Fetching public sets: from a real HTTP server that drops connections, forgets ranges and changes its files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxr_ray.cli import app
from cxr_ray.data import download, fetch
from cxr_ray.data.download import ResumingDownload
from cxr_ray.data.fetch import SETS, RemoteFile, dataverse_files, fetch_set
from cxr_ray.data.readers import list_films
from cxr_ray.data.unpack import unpack_zip
from cxr_ray.errors import ConfigError, DataError
from cxr_ray.paths import locate
from cxr_ray.progress import progress

ARCHIVE = "MontgomerySet.zip"
PIECE = 1 << 16  # bytes; what comes of a smaller piece before a connection ends is asked for again


@dataclass
class Site:
    """A server of files, and how it behaves; it notes the ranges that it is asked for."""

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    etag: str | None = '"one"'
    drop_after: list[int] = field(default_factory=list)  # bytes of an answer before the connection ends, one a request
    busy: int = 0  # requests answered with 503 first
    slow: bool = False  # 64 KiB at a time, with pauses
    asked: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, asked = self.site, self.headers.get("Range")
        site.asked.append(asked)
        content = site.files.get(self.path)
        if content is None or site.busy:
            site.busy = max(0, site.busy - 1)
            self.send_error(404 if content is None else 503)
            return
        start = 0
        if asked and site.ranges and self.headers.get("If-Range") in (None, site.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + site.drop_after.pop(0) if site.drop_after else len(content)
        with contextlib.suppress(ConnectionError):  # tests kill those who ask
            for place in range(start, min(stop, len(content)), PIECE):
                self.wfile.write(content[place : min(stop, place + PIECE)])
                if site.slow:
                    time.sleep(0.05)
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site({f"/{ARCHIVE}": archive()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def downloads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Montgomery comes from the local server, and nobody waits long between attempts."""
    monkeypatch.setitem(fetch.DOWNLOADS, "montgomery", lambda: [RemoteFile(ARCHIVE, f"{site.url}/{ARCHIVE}")])
    monkeypatch.setattr(download, "WAIT_S", 0.02)


def archive(seed: int = 0, size: int = 400_000) -> bytes:
    noise, sink = random.Random(seed), io.BytesIO()
    with zipfile.ZipFile(sink, "w") as opened:
        for number in range(1, 9):
            # Without a time of its own a member gets the present one, and no two archives are equal.
            member = zipfile.ZipInfo(f"MontgomerySet/CXR_png/MCUCXR_000{number}_{number % 2}.png")
            opened.writestr(member, noise.randbytes(size // 8))
    return sink.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".fetch.lock")


def test_a_set_is_downloaded_unpacked_and_ready_to_import(site, tmp_path):
    lines = fetch_set("montgomery", tmp_path / "out", quiet=True)
    assert names(tmp_path / "out") == ["MontgomerySet", ARCHIVE, f"{ARCHIVE}.sha256"]
    assert (tmp_path / "out" / ARCHIVE).read_bytes() == site.files[f"/{ARCHIVE}"]
    assert len(list_films(locate(tmp_path / "out"), format="montgomery").files) == 8
    digest = hashlib.sha256(site.files[f"/{ARCHIVE}"]).hexdigest()
    assert (tmp_path / "out" / f"{ARCHIVE}.sha256").read_text() == f"{digest}  {ARCHIVE}\n"
    assert any("no checksum" in line and digest in line for line in lines)
    assert f"next: cxr-ray data import {tmp_path / 'out'} DATASET --format montgomery" in lines
    assert any(line.startswith("licence: ") for line in lines)


def test_a_second_call_compares_what_is_there_and_asks_nobody(site, tmp_path):
    fetch_set("montgomery", tmp_path, quiet=True)
    lines = fetch_set("montgomery", tmp_path, quiet=True)
    assert len(site.asked) == 1
    assert not any("no checksum" in line for line in lines)
    (tmp_path / ARCHIVE).unlink()
    assert any("was unpacked" in line for line in fetch_set("montgomery", tmp_path, quiet=True))
    assert len(site.asked) == 1


def test_a_damaged_archive_is_noticed_later_and_fetched_again(site, tmp_path):
    fetch_set("montgomery", tmp_path, quiet=True)
    damaged = bytearray((tmp_path / ARCHIVE).read_bytes())
    damaged[1000] ^= 1
    (tmp_path / ARCHIVE).write_bytes(damaged)
    fetch_set("montgomery", tmp_path, quiet=True)
    assert len(site.asked) == 2
    assert (tmp_path / ARCHIVE).read_bytes() == site.files[f"/{ARCHIVE}"]


def test_another_file_at_the_address_is_not_taken_for_the_one_that_came_first(site, tmp_path):
    fetch_set("montgomery", tmp_path, quiet=True)
    (tmp_path / ARCHIVE).unlink()
    (tmp_path / "MontgomerySet").rename(tmp_path / "elsewhere")
    site.files[f"/{ARCHIVE}"] = archive(seed=1)
    with pytest.raises(DataError, match=r"is not the file that came first.*remove MontgomerySet\.zip\.sha256"):
        fetch_set("montgomery", tmp_path, quiet=True)
    assert names(tmp_path) == [f"{ARCHIVE}.sha256", "elsewhere"]


def test_a_dropped_connection_goes_on_where_it_ended(site, tmp_path, capsys):
    site.drop_after = [2 * PIECE, 3 * PIECE]
    fetch_set("montgomery", tmp_path)
    assert site.asked == [None, f"bytes={2 * PIECE}-", f"bytes={5 * PIECE}-"]
    assert (tmp_path / ARCHIVE).read_bytes() == site.files[f"/{ARCHIVE}"]
    assert f"{ARCHIVE}: 0.4 MB from {site.url}/{ARCHIVE} to {tmp_path}" in capsys.readouterr().err


def test_a_server_without_ranges_starts_again(site, tmp_path):
    site.ranges, site.drop_after = False, [PIECE]
    fetch_set("montgomery", tmp_path, quiet=True)
    assert site.asked == [None, f"bytes={PIECE}-"]
    assert (tmp_path / ARCHIVE).read_bytes() == site.files[f"/{ARCHIVE}"]


def test_a_busy_server_is_asked_again(site, tmp_path):
    site.busy = 2
    fetch_set("montgomery", tmp_path, quiet=True)
    assert len(site.asked) == 3


def test_a_server_that_always_drops_is_given_up_and_what_came_stays(site, tmp_path):
    site.drop_after = [2 * PIECE, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"cannot be downloaded after 0\.1 MB \(.*\)\. The same command goes on"):
        fetch_set("montgomery", tmp_path, quiet=True)
    assert names(tmp_path) == [f".{ARCHIVE}.partial", f".{ARCHIVE}.partial.json"]
    fetch_set("montgomery", tmp_path, quiet=True)
    assert site.asked[-1] == f"bytes={2 * PIECE}-"
    assert names(tmp_path) == ["MontgomerySet", ARCHIVE, f"{ARCHIVE}.sha256"]


@pytest.mark.parametrize("etag", ['"two"', None])
def test_halves_of_two_files_are_never_joined(site, tmp_path, etag):
    """With a validator the server says so; without one the sizes tell."""
    site.etag = '"one"' if etag else None
    site.drop_after = [2 * PIECE, 0, 0, 0, 0]
    with pytest.raises(DataError, match="cannot be downloaded after"):
        fetch_set("montgomery", tmp_path, quiet=True)
    site.etag, site.files[f"/{ARCHIVE}"] = etag, archive(seed=1, size=400_000 if etag else 480_000)
    fetch_set("montgomery", tmp_path, quiet=True)
    assert (tmp_path / ARCHIVE).read_bytes() == archive(seed=1, size=400_000 if etag else 480_000)


def test_what_was_begun_of_a_longer_file_is_dropped(site, tmp_path):
    site.etag, site.drop_after = None, [5 * PIECE, 0, 0, 0, 0]
    with pytest.raises(DataError, match="cannot be downloaded after"):
        fetch_set("montgomery", tmp_path, quiet=True)
    site.files[f"/{ARCHIVE}"] = archive(seed=1, size=200_000)
    fetch_set("montgomery", tmp_path, quiet=True)
    assert site.asked[-2:] == [f"bytes={5 * PIECE}-", None]
    assert (tmp_path / ARCHIVE).read_bytes() == archive(seed=1, size=200_000)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_goes_on_in_the_next_process(site, tmp_path, end):
    site.slow = True
    code = (
        "import sys; from cxr_ray.data import fetch\n"
        "fetch.DOWNLOADS['montgomery'] = lambda: [fetch.RemoteFile(sys.argv[1], sys.argv[2])]\n"
        "fetch.fetch_set('montgomery', sys.argv[3])"
    )
    site.files[f"/{ARCHIVE}"] = archive(size=8_000_000)
    partial_file = tmp_path / f".{ARCHIVE}.partial"
    process = subprocess.Popen(
        [sys.executable, "-c", code, ARCHIVE, f"{site.url}/{ARCHIVE}", tmp_path], stderr=subprocess.PIPE, text=True
    )
    while not partial_file.exists() or not partial_file.stat().st_size:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(end)
    told = process.communicate(timeout=30)[1]
    came = partial_file.stat().st_size
    assert 0 < came < 8_000_000
    if end == signal.SIGINT:
        assert f"{came / 1e6:.1f} MB of {ARCHIVE} stay for the next attempt" in told
    site.slow = False
    fetch_set("montgomery", tmp_path, quiet=True)
    assert site.asked[-1] == f"bytes={came}-"
    assert (tmp_path / ARCHIVE).read_bytes() == site.files[f"/{ARCHIVE}"]


def test_a_known_checksum_is_compared(site, tmp_path, monkeypatch):
    remote = RemoteFile(ARCHIVE, f"{site.url}/{ARCHIVE}", "md5:" + "0" * 32)
    monkeypatch.setitem(fetch.DOWNLOADS, "montgomery", lambda: [remote])
    with pytest.raises(DataError, match=r"is not the file that its page describes: its checksum is not md5:0000.*hand"):
        fetch_set("montgomery", tmp_path, quiet=True)
    assert names(tmp_path) == []


def test_a_page_in_the_place_of_the_archive_is_refused(site, tmp_path):
    site.files[f"/{ARCHIVE}"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match=r"is not the archive it should be, and starts with b'<html>please"):
        fetch_set("montgomery", tmp_path, quiet=True)
    assert names(tmp_path) == []


def test_a_file_that_is_gone_is_told_with_the_page(site, tmp_path):
    del site.files[f"/{ARCHIVE}"]
    with pytest.raises(DataError, match=r"answers 404 Not Found\. The set can be had by hand from https://lhncbc"):
        fetch_set("montgomery", tmp_path, quiet=True)


def test_a_server_that_is_not_there_is_told_in_a_sentence(tmp_path, monkeypatch):
    remote = RemoteFile(ARCHIVE, "http://127.0.0.1:9/nowhere.zip")
    monkeypatch.setitem(fetch.DOWNLOADS, "montgomery", lambda: [remote])
    with pytest.raises(DataError, match=r"cannot be downloaded \(.*refused.*\)\. Check the network"):
        fetch_set("montgomery", tmp_path, quiet=True)


def test_the_room_on_the_disk_is_looked_at_before_a_byte_is_written(site, tmp_path):
    class Huge(bytes):
        """A file that is said to be of a petabyte."""

        def __len__(self) -> int:
            return 10**15

    site.files["/huge.zip"] = Huge(b"PK")
    with (
        progress("Fetching", quiet=True) as line,
        pytest.raises(DataError, match=r"too full: 2000000\.00 GB are needed \(the archive, and as much again"),
    ):
        ResumingDownload(tmp_path / "huge.zip", line, copies=2)(f"{site.url}/huge.zip", tmp_path / "out", None)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_told_with_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(
            DataError, match=rf"{out}: cannot be written \(.*\)\. Check that the place can be written to"
        ):
            fetch_set("montgomery", out, quiet=True)


def test_a_member_whose_name_no_disk_takes_leaves_no_half_of_a_folder(site, tmp_path):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as opened:
        opened.writestr("a.png", b"film")
        opened.writestr("n" * 300, b"film")
    site.files[f"/{ARCHIVE}"] = sink.getvalue()
    with pytest.raises(DataError, match=r"cannot be written \(File name too long\)"):
        fetch_set("montgomery", tmp_path, quiet=True)
    assert names(tmp_path) == [ARCHIVE, f"{ARCHIVE}.sha256"]


def test_two_processes_do_not_fetch_into_one_folder(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".fetch.lock"), pytest.raises(DataError, match="another process is fetching into this"):
        fetch_set("montgomery", tmp_path, quiet=True)


def test_dataverse_tells_names_addresses_and_checksums(site, tmp_path, monkeypatch):
    content = archive()
    listed = [
        {"dataFile": {"id": number, "filename": name, "md5": hashlib.md5(content).hexdigest()}}
        for number, name in ((7, "train.npz"), (8, "README.txt"), (9, "test.npz"))
    ]
    site.files["/api/datasets/:persistentId/?persistentId=doi:10.1/X"] = json.dumps(
        {"status": "OK", "data": {"latestVersion": {"files": listed}}}
    ).encode()
    site.files |= {"/api/access/datafile/7": content, "/api/access/datafile/9": content}
    monkeypatch.setitem(fetch.DOWNLOADS, "basu", partial(dataverse_files, site.url, "doi:10.1/X"))
    lines = fetch_set("basu", tmp_path, quiet=True)
    assert names(tmp_path) == ["test.npz", "test.npz.sha256", "train.npz", "train.npz.sha256"]
    assert not any("no checksum" in line for line in lines)
    site.files["/api/datasets/:persistentId/?persistentId=doi:10.1/X"] = b"<html>"
    with pytest.raises(DataError, match=r"does not list the files of doi:10\.1/X.*by hand from https://doi\.org"):
        fetch_set("basu", tmp_path, quiet=True)


@pytest.mark.parametrize("name", ["radiography", "tb", "rsna", "cohen"])
def test_a_set_behind_a_login_is_told_step_by_step(name, tmp_path):
    told = CliRunner().invoke(app, ["data", "fetch", name, "--out", str(tmp_path / "films")])
    assert told.exit_code == 0
    assert re.search(r"^page: https://", told.output, re.MULTILINE)
    steps = re.findall(r"^  (\d)\. (.+)$", told.output, re.MULTILINE)
    assert [number for number, _ in steps] == [str(n + 1) for n in range(len(steps))]
    assert steps[-1][1] == f"cxr-ray data import {tmp_path / 'films'} DATASET --format {name}"
    assert not (tmp_path / "films").exists()


def test_the_help_of_the_command_names_every_set():
    text = CliRunner().invoke(app, ["data", "fetch", "--help"]).output
    assert all(re.search(rf"\b{name}\b", text) for name in SETS)


def test_a_misspelt_set_is_named():
    with pytest.raises(ConfigError, match=r"no set 'shenzen' \(did you mean 'shenzhen'\?\)"):
        fetch_set("shenzen")


def unpack(path: Path, folder: Path) -> int:
    with progress("Unpacking", quiet=True) as line:
        return unpack_zip(path, folder, line)


def packed(path: Path, *members: str | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for member in ("a/good.png", *members):
            opened.writestr(member, b"film")
    return path


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a/../../evil.png", "a\\..\\..\\evil.png"])
def test_a_member_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    path = packed(tmp_path / "a.zip", name)
    with pytest.raises(DataError, match=r"holds the member '.*evil\.png', which leads out of the folder"):
        unpack(path, tmp_path / "out" / "a")
    assert names(tmp_path) == ["a.zip"]


def test_a_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("a/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match="holds the member 'a/link', which is a link"):
        unpack(packed(tmp_path / "a.zip", link), tmp_path / "a")
    assert names(tmp_path) == ["a.zip"]


def test_an_archive_of_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    from cxr_ray.data import unpack as module

    path = packed(tmp_path / "a.zip", "b.png", "c.png")
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match=r"holds 3 files of 0\.0 MB in all, more than the 2 files"):
        unpack(path, tmp_path / "a")
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    monkeypatch.setattr(module, "MAX_BYTES", 11)
    with pytest.raises(DataError, match="holds 3 files"):
        unpack(path, tmp_path / "a")
    monkeypatch.setattr(module, "MAX_BYTES", 12)
    assert unpack(path, tmp_path / "a") == 3


def test_a_damaged_archive_leaves_no_half_of_a_folder(tmp_path):
    path = packed(tmp_path / "a.zip", "b.png")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"film", b"flim", 1))
    with pytest.raises(DataError, match=r"cannot be unpacked \(Bad CRC-32 .*Remove it and fetch it again"):
        unpack(path, tmp_path / "a")
    assert names(tmp_path) == ["a.zip"]


def test_an_unpacking_that_was_killed_is_not_taken_for_a_whole_one(site, tmp_path):
    fetch_set("montgomery", tmp_path, quiet=True)
    # What a killed process leaves: some members below the hidden name.
    os.rename(tmp_path / "MontgomerySet", tmp_path / ".MontgomerySet.unpacking")  # noqa: PTH104
    next((tmp_path / ".MontgomerySet.unpacking").rglob("*.png")).unlink()
    fetch_set("montgomery", tmp_path, quiet=True)
    assert len(list((tmp_path / "MontgomerySet").rglob("*.png"))) == 8
    assert names(tmp_path) == ["MontgomerySet", ARCHIVE, f"{ARCHIVE}.sha256"]


def test_a_folder_of_an_archive_that_is_not_on_record_is_not_taken_for_what_comes_now(site, tmp_path):
    site.files[f"/{ARCHIVE}"] = archive()
    fetch_set("montgomery", tmp_path, quiet=True)
    for name in (ARCHIVE, f"{ARCHIVE}.sha256"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"not on record any more.*Remove or rename this folder"):
        fetch_set("montgomery", tmp_path, quiet=True)
