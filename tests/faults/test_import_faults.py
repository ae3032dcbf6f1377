"""Imports that are killed or run out of disk: what is finished is kept, and nothing half-written is readable."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_ray.data import import_work
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.phantom_dataset import write_phantom_films
from cxr_ray.data.store import open_dataset
from cxr_ray.errors import DataError

SHARD = 32
SCRIPT = """
import sys
from cxr_ray.data import import_work
import_work.SHARD_IMAGES, import_work.CHUNK_IMAGES = {shard}, 4
from cxr_ray.data.importers import import_dataset
{prepare}
print("ready", flush=True)
import_dataset({films!r}, {out!r}, size=64, quiet=True{options})
"""
ON_RAY = "from cxr_ray import cluster; cluster.connect(cpus=2)"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 films, a copy of one, and one that cannot be read."""
    folder = write_phantom_films(tmp_path_factory.mktemp("films") / "films", images=200, size=96, quiet=True)
    (folder / "metadata.csv").unlink()
    (folder / "covid" / "copy.png").write_bytes((folder / "covid" / "phantom-00001.png").read_bytes())
    (folder / "normal" / "broken.png").write_bytes((folder / "normal" / "phantom-00000.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def uninterrupted(films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as small:
        small.setattr(import_work, "SHARD_IMAGES", SHARD)
        small.setattr(import_work, "CHUNK_IMAGES", 4)
        return contents(import_dataset(films, tmp_path_factory.mktemp("whole") / "out", size=64, quiet=True).root)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_work, "SHARD_IMAGES", SHARD)
    monkeypatch.setattr(import_work, "CHUNK_IMAGES", 4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(films: Path, out: Path, prepare: str = "", options: str = "") -> subprocess.Popen[bytes]:
    code = SCRIPT.format(shard=SHARD, prepare=prepare, films=str(films), out=str(out), options=options)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as told:
        assert told.readline() == b"ready\n"
    return process


def test_killed_again_and_again_it_still_equals_an_import_that_never_was(tmp_path, films, uninterrupted):
    dice, kills, out = random.Random(0), 0, tmp_path / "out"
    for attempt in range(15):
        process = start(films, out)
        if attempt < 12:
            # From the very start of the work to its end, mostly a little later each time.
            time.sleep(dice.uniform(0, 0.25 * attempt))
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
        if not out.exists():
            with pytest.raises(DataError, match=r"was interrupted|there is no such dataset"):
                open_dataset(out)
    assert kills >= 3
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_import_over_ray_whose_driver_is_killed_is_completed_without_redoing_shards(
    tmp_path, films, uninterrupted, small_shards
):
    work = tmp_path / ".out.importing"
    slow = ON_RAY + (
        "\ndef slowly(function, items):\n"
        "    import time\n"
        "    for result in cluster.parallel_map(function, items):\n"
        "        time.sleep(0.05)\n"
        "        yield result"
    )
    process = start(films, tmp_path / "out", prepare=slow, options=", map=slowly")
    deadline = time.monotonic() + 120
    while len(list((work / ".import").glob("shard-*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {name: (work / name).stat().st_mtime_ns for name in ("pixels-00000.npy", "pixels-00001.npy")}
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert contents(dataset.root) == uninterrupted
    assert {name: (dataset.root / name).stat().st_mtime_ns for name in finished} == finished


def test_a_second_import_into_the_same_place_is_refused_while_the_first_goes_on(tmp_path, films, small_shards):
    slow = "import time\ndef slowly(f, items):\n    for item in items:\n        time.sleep(0.2); yield f(item)"
    process = start(films, tmp_path / "out", prepare=slow, options=", map=slowly")
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".out.importing" / ".import" / "plan").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(DataError, match=r"out: another import is writing this dataset\. Wait for it"):
            import_dataset(films, tmp_path / "out", size=64, quiet=True)
    finally:
        process.kill()
        process.wait()
    assert import_dataset(films, tmp_path / "out", size=64, quiet=True).manifest.num_rows == 201


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk of two megabytes")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_too_small_stops_the_import_before_it_decodes_a_film(small_disk, films):
    with pytest.raises(
        DataError, match=r"disk is too full: the dataset needs \d+\.\d MB, and [12]\.\d MB are free\. Mak"
    ):
        import_dataset(films, small_disk / "out", size=128, quiet=True)
    with pytest.raises(DataError, match="was interrupted"):
        open_dataset(small_disk / "out")


def test_a_disk_that_fills_while_an_import_runs_stops_it_and_the_next_attempt_goes_on(
    small_disk, films, uninterrupted, small_shards
):
    filler = small_disk / "somebody-elses-film"

    def filling(function, items):
        for number, item in enumerate(items):
            if number == 20:
                room = os.statvfs(small_disk)
                filler.write_bytes(b"0" * (room.f_bavail * room.f_frsize - 20_000))
            yield function(item)

    with pytest.raises(
        DataError,
        match=r"disk: the disk is too full: the dataset needs 1\.\d MB, of which 0\.\d MB are there, and 0\.\d MB",
    ):
        import_dataset(films, small_disk / "out", size=64, map=filling, quiet=True)
    assert not (small_disk / "out").exists()
    work = small_disk / ".out.importing"
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("pixels-*.npy")}
    assert finished
    assert not list(work.glob(".*.partial"))
    filler.unlink()
    dataset = import_dataset(films, small_disk / "out", size=64, quiet=True)
    assert contents(dataset.root) == uninterrupted
    assert {name: (dataset.root / name).stat().st_mtime_ns for name in finished} == finished


def test_a_film_that_changed_between_two_attempts_is_decoded_again(tmp_path, films, small_shards):
    def stopping(function, items):
        for number, item in enumerate(items):
            if number == 30:
                raise KeyboardInterrupt
            yield function(item)

    copies = tmp_path / "films"
    for path in films.rglob("*.png"):
        target = copies / path.relative_to(films)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        import_dataset(copies, tmp_path / "out", size=64, map=stopping, quiet=True)
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(copies / "covid" / "phantom-00006.png")
    dataset = import_dataset(copies, tmp_path / "out", size=64, quiet=True)
    row = dataset.column("path").index("covid/phantom-00006.png")
    assert (dataset.pixels[row] == 200).all()
