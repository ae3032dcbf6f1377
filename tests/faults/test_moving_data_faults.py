"""Pushes and copies whose process is killed: half of a dataset is never read, and nothing is sent twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from cxr_ray.data.phantom_dataset import make_phantoms
from cxr_ray.data.push import push_dataset
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.errors import DataError
from cxr_ray.paths import locate

# A slow network: small pieces, and a pause after each.
SLOW = """
import time
import cxr_ray.cache, cxr_ray.data.push
from cxr_ray.progress import ProgressLine
cxr_ray.cache.PIECE = cxr_ray.data.push.PIECE = 1 << 16
advance = ProgressLine.advance
def slowly(line, *args, **kwargs):
    time.sleep(0.02)
    advance(line, *args, **kwargs)
ProgressLine.advance = slowly
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_phantoms(tmp_path_factory.mktemp("moving") / "dataset", images=100, size=224, quiet=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def times(uri: str) -> dict[str, int]:
    place = locate(uri)
    selector = pafs.FileSelector(place.path, allow_not_found=True)
    return {info.base_name: info.mtime_ns for info in place.filesystem.get_file_info(selector)}


def kill_when(code: str, ready: Callable[[], bool]) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW + code])
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_push_is_completed_without_sending_finished_files_again(s3: Callable[[str], str], dataset, cache):
    uri = s3("films")
    kill_when(
        f"cxr_ray.data.push.push_dataset({str(dataset.root)!r}, {uri!r}, quiet=True)",
        lambda: "pixels-00000.npy" in times(uri),
    )
    with pytest.raises(DataError, match="is not a dataset"):
        open_dataset(uri)
    before = times(uri)
    assert "masks-00000.npy" not in before
    push_dataset(dataset, uri, quiet=True)
    after = times(uri)
    assert {name: after[name] for name in ("manifest.parquet", "pixels-00000.npy")} == {
        name: before[name] for name in ("manifest.parquet", "pixels-00000.npy")
    }
    np.testing.assert_array_equal(open_dataset(uri).pixels[99], dataset.pixels[99])


def test_a_killed_copy_is_continued_inside_the_file_it_stopped_in(s3: Callable[[str], str], dataset, cache):
    uri = s3("films")
    push_dataset(dataset, uri, quiet=True)
    partial = cache / f"{dataset.info.fingerprint}.partial" / "pixels-00000.npy"
    kill_when(
        f"from cxr_ray.data.store import open_dataset; open_dataset({uri!r})",
        lambda: partial.exists() and partial.stat().st_size > 1_000_000,
    )
    assert not (cache / dataset.info.fingerprint).exists()
    begun = partial.stat()
    assert begun.st_size < dataset.info.image_size**2 * 100
    opened = open_dataset(uri)
    finished = (opened.root / "pixels-00000.npy").stat()
    assert finished.st_ino == begun.st_ino  # gone on with, not begun again
    np.testing.assert_array_equal(opened.pixels[99], dataset.pixels[99])
