"""Replacing a dataset: the old one stays whole until the new one is, and the record of looks stays for good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_ray.data import import_work
from cxr_ray.data.dataset_folder import swap_in
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.phantom_dataset import make_phantoms
from cxr_ray.data.store import LOOKS_FILE
from cxr_ray.errors import DataError

LOOK = '{"time": "2026-01-01T00:00:00+00:00", "bundle": "b", "split": "test", "images": 7}\n'


@pytest.fixture
def films(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for label in ("normal", "covid"):
        (tmp_path / "films" / label).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(0, 255, (40, 30), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "films" / label / f"{number:03d}.png")
    return tmp_path / "films"


@pytest.fixture
def out(tmp_path: Path, films: Path) -> Path:
    """A finished dataset of 64 px that somebody has evaluated on."""
    import_dataset(films, tmp_path / "out", size=64, quiet=True)
    (tmp_path / "out" / LOOKS_FILE).write_text(LOOK)
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith("."))


def stopped(function, items):
    yield function(next(iter(items)))
    raise KeyboardInterrupt


def a_bad_csv(films: Path) -> None:
    (films / "metadata.csv").write_text("path,label\n")


def many_unreadable_films(films: Path) -> None:
    for number in range(20):
        (films / "normal" / f"{number:03d}.png").write_text("no film")


@pytest.mark.parametrize("harm", [a_bad_csv, many_unreadable_films])
def test_an_overwriting_import_that_fails_leaves_the_old_dataset_as_it_was(films, out, harm: Callable[[Path], None]):
    before = contents(out)
    harm(films)
    with pytest.raises(DataError):
        import_dataset(films, out, size=96, overwrite=True, quiet=True)
    assert contents(out) == before


def test_an_interrupted_overwriting_import_leaves_the_old_dataset_as_it_was(films, out):
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(films, out, size=96, overwrite=True, map=stopped, quiet=True)
    assert contents(out) == before


def test_an_overwriting_import_killed_midway_is_completed_without_redoing_shards(tmp_path, films, out, monkeypatch):
    script = (
        "import time, cxr_ray.data.import_work as i; i.SHARD_IMAGES = 16; original = i.decode_chunk\n"
        "from cxr_ray.data.importers import import_dataset\n"
        "def slow(chunk):\n    time.sleep(0.3); return original(chunk)\n"
        f"i.decode_chunk = slow; import_dataset({str(films)!r}, {str(out)!r}, size=96, overwrite=True, quiet=True)"
    )
    before = contents(out)
    process = subprocess.Popen([sys.executable, "-c", script])
    work = tmp_path / ".out.importing"
    deadline = time.monotonic() + 60
    while len(list((work / ".import").glob("shard-*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert contents(out) == before
    with pytest.raises(DataError, match="Give --overwrite to replace it"):
        import_dataset(films, out, size=96, quiet=True)
    finished = {file.name: file.stat().st_mtime_ns for file in work.glob("pixels-*.npy")}
    monkeypatch.setattr(import_work, "SHARD_IMAGES", 16)
    dataset = import_dataset(films, out, size=96, overwrite=True, quiet=True)
    assert dataset.info.image_size == 96
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert beside(out) == []
    assert not (out / ".import").exists()


def test_a_finished_shard_whose_pixels_were_lost_or_damaged_is_decoded_again(tmp_path, films, monkeypatch):
    monkeypatch.setattr(import_work, "SHARD_IMAGES", 16)
    whole = import_dataset(films, tmp_path / "whole", size=64, quiet=True)

    def stop_late(function, items):
        for result in map(function, items):
            yield result
            if len(list((tmp_path / ".out.importing" / ".import").glob("shard-*.json"))) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_dataset(films, tmp_path / "out", size=64, map=stop_late, quiet=True)
    (tmp_path / ".out.importing" / "pixels-00000.npy").unlink()
    damaged = tmp_path / ".out.importing" / "pixels-00001.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert contents(dataset.root)["pixels-00000.npy"] == contents(whole.root)["pixels-00000.npy"]
    assert dataset.info.fingerprint == whole.info.fingerprint


def test_looks_stay_whatever_replaces_the_dataset(films, out):
    dataset = import_dataset(films, out, size=96, overwrite=True, quiet=True)
    assert (out / LOOKS_FILE).read_text() == LOOK
    notes = json.loads((out / "import_report.json").read_text())["notes"]
    assert notes == ["the looks at the test split of the dataset replaced stay on record"]
    phantoms = make_phantoms(out, images=40, size=64, overwrite=True, quiet=True)
    assert phantoms.info.fingerprint != dataset.info.fingerprint
    assert (out / LOOKS_FILE).read_text() == LOOK


def test_phantoms_that_cannot_be_drawn_leave_the_old_dataset_as_it_was(out):
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        make_phantoms(out, images=40, size=64, overwrite=True, map=stopped, quiet=True)
    assert contents(out) == before
    assert beside(out) == []


def test_a_swap_that_fails_puts_the_old_dataset_back(tmp_path, out):
    before = contents(out)
    with pytest.raises(FileNotFoundError):
        swap_in(tmp_path / "nothing", out)
    assert contents(out) == before
    assert beside(out) == []


@pytest.mark.parametrize("again", ["import", "phantom"])
def test_a_swap_that_was_killed_is_put_right_by_the_next_command(films, out, again):
    before = contents(out)
    out.rename(out.with_name(".out.replaced"))
    with pytest.raises(DataError, match="already holds a finished dataset"):
        if again == "import":
            import_dataset(films, out, size=64, quiet=True)
        else:
            make_phantoms(out, images=40, size=64, quiet=True)
    assert contents(out) == before


def test_other_files_beside_a_dataset_are_not_overwritten_with_it(films, out):
    (out / "thesis.tex").write_text("years of work")
    for replace in (
        lambda: import_dataset(films, out, size=64, overwrite=True, quiet=True),
        lambda: make_phantoms(out, images=40, size=64, overwrite=True, quiet=True),
    ):
        with pytest.raises(DataError, match=r"holds 'thesis.tex', which is not part of the dataset.*Move it elsewhere"):
            replace()
    assert (out / "thesis.tex").exists()


def test_places_where_no_folder_can_stand_are_explained(tmp_path, films, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(DataError, match=f"{file}: is a file"):
        import_dataset(films, file, size=64, quiet=True)
    with pytest.raises(DataError, match=r"no folder can be made here \(Not a directory\)"):
        import_dataset(films, file / "out", size=64, quiet=True)
    with pytest.raises(DataError, match=r"no folder can be made here \(Not a directory\)"):
        make_phantoms(file / "out", images=40, size=64, quiet=True)
    with pytest.raises(DataError, match=r"out\\xff: has a name that is not UTF-8\. Rename it"):
        import_dataset(films, tmp_path / os.fsdecode(b"out\xff"), size=64, quiet=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DataError, match=r"the folder this command runs in.*Name a new folder inside it"):
        import_dataset(films, ".", size=64, quiet=True)
    assert file.read_text() == "mine"
