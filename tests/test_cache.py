"""Copies of remote folders on this node: made once, whole or not at all, and never begun twice."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from cxr_ray import cache as cache_module
from cxr_ray.cache import local_copy
from cxr_ray.errors import DataError
from cxr_ray.paths import Location, locate

# fsspec's view of this machine's disk: for this package as far away as any other remote storage.
REMOTE = "fsspec+file://"
FILES = {"weights": b"1234" * 1000, "notes": b"56"}
SUMS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def far(tmp_path) -> Path:
    folder = tmp_path / "far" / "bundle"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def remote(far) -> Location:
    return locate(f"{REMOTE}{far}")


class BreakingStorage:
    """As much of a file system as a copy asks for; the connection breaks after some bytes of each file.

    Args:
        after: How many bytes get through in one go.
        times: How often it breaks.
    """

    def __init__(self, *, after: int, times: int) -> None:
        self.after, self.times = after, times
        self.opened: list[str] = []
        self.read_from: list[int] = []
        self.get_file_info = pafs.LocalFileSystem().get_file_info

    def open_input_file(self, path: str) -> BreakingFile:
        self.opened.append(Path(path).name)
        return BreakingFile(Path(path), self)


class BreakingFile:
    def __init__(self, path: Path, storage: BreakingStorage) -> None:
        self._stream = path.open("rb")
        self._storage = storage
        self._budget = storage.after

    def seek(self, position: int) -> None:
        self._storage.read_from.append(position)
        self._stream.seek(position)

    def read(self, size: int) -> bytes:
        if self._budget <= 0 and self._storage.times > 0:
            self._storage.times -= 1
            raise OSError("connection reset by peer")
        self._budget -= size
        return self._stream.read(size)

    def __enter__(self) -> BreakingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def breaking(far: Path, *, after: int = 10**9, times: int = 0) -> tuple[Location, BreakingStorage]:
    storage = BreakingStorage(after=after, times=times)
    return Location(storage, str(far), f"{REMOTE}{far}"), storage  # type: ignore[arg-type]


def test_a_remote_folder_is_copied_with_every_file(remote, cache):
    copy = local_copy(remote, "key", SUMS)
    assert copy == cache / "key"
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == FILES


def test_a_file_that_changed_on_the_way_is_refused_and_mended_by_the_next_copy(remote, far, cache):
    (far / "weights").write_bytes(b"x" * 4000)
    with pytest.raises(DataError, match=r"bundle: weights does not match its sha256 .* Try again; if it stays so"):
        local_copy(remote, "key", SUMS)
    assert not (cache / "key").exists()
    (far / "weights").write_bytes(FILES["weights"])
    assert (local_copy(remote, "key", SUMS) / "weights").read_bytes() == FILES["weights"]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(far, cache, monkeypatch):
    monkeypatch.setattr(cache_module, "PIECE", 500)
    broken, storage = breaking(far, after=1000, times=2)
    assert (local_copy(broken, "key", SUMS) / "weights").read_bytes() == FILES["weights"]
    assert storage.read_from == [0, 1000, 2000, 0]


def test_an_interrupted_copy_is_continued_inside_the_file_it_stopped_in(remote, far, cache, monkeypatch):
    monkeypatch.setattr(cache_module, "PIECE", 500)
    broken, _ = breaking(far, after=1000, times=99)
    with pytest.raises(DataError, match=r"cannot be copied to this node \(connection reset by peer\).*what is here"):
        local_copy(broken, "key", SUMS)
    assert (cache / "key.partial" / "weights").stat().st_size == 3000
    whole, storage = breaking(far)
    local_copy(whole, "key", SUMS)
    assert storage.read_from == [3000, 0]


def test_what_an_interrupted_copy_left_is_not_trusted(remote, cache):
    partial = cache / "key.partial"
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(b"9999")
    (partial / "notes").write_bytes(b"5678")
    assert {path.name: path.read_bytes() for path in local_copy(remote, "key", SUMS).iterdir()} == FILES


def test_a_missing_file_is_named(remote, far, cache):
    (far / "notes").unlink()
    with pytest.raises(DataError, match="bundle: notes is missing"):
        local_copy(remote, "key", SUMS)


def test_a_copy_that_would_not_fit_is_not_begun(remote, cache, monkeypatch):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match=r"needs 0\.0 MB more, and 0\.0 MB are free\. Make room, or set CXR_CACHE"):
        local_copy(remote, "key", SUMS)


def test_a_local_folder_is_used_where_it_lies(tmp_path, cache):
    assert local_copy(locate(tmp_path), "key", {}) == tmp_path
    assert not cache.exists()


def test_several_at_once_copy_once(far, cache):
    remote, storage = breaking(far)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: local_copy(remote, "key", SUMS), range(4)))
    assert storage.opened == list(FILES)
    assert found == {cache / "key"}


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(remote, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cache: copies of remote folders cannot be kept here .*Set CXR_CACHE"):
        local_copy(remote, "key", SUMS)
