"""The same films under another split: pixels are shared, and what was looked at is not forgotten."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.data.phantom_dataset import make_phantoms
from cxr_ray.data.splits import SPLITS
from cxr_ray.data.splitting import resplit_dataset
from cxr_ray.data.store import LOOKS_FILE, Dataset, open_dataset
from cxr_ray.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("resplit") / "films"
    return make_phantoms(out, images=120, size=64, sources=3, quiet=True)


def test_a_resplit_dataset_has_the_same_films_and_other_splits_and_takes_no_room(films, tmp_path: Path):
    other = resplit_dataset(films, tmp_path / "other", seed=5)
    assert other.column("image_id") == films.column("image_id")
    assert other.column("split") != films.column("split")
    assert other.info.fingerprint != films.info.fingerprint
    for shard in films.info.pixel_files:
        assert (other.root / shard.file).stat().st_ino == (films.root / shard.file).stat().st_ino
    np.testing.assert_array_equal(other.pixels[100], films.pixels[100])
    assert open_dataset(tmp_path / "other").info == other.info


def test_ratios_and_held_out_sources_are_what_was_asked_for(films, tmp_path: Path):
    halves = resplit_dataset(films, tmp_path / "halves", ratios="40/20/20/20")
    counts = Counter(halves.column("split"))
    assert [counts[split] for split in SPLITS] == pytest.approx([48, 24, 24, 24], abs=5)
    held = resplit_dataset(films, tmp_path / "held", hold_out=["phantom-b"])
    sources = np.array(held.column("source"))
    assert set(sources[held.rows("test")]) == {"phantom-b"}
    assert "phantom-b" not in set(sources[held.rows("train")])
    assert held.info.split.strategy == "source-holdout"
    assert held.info.split.holdout == ["phantom-b"]


def test_the_original_stays_when_the_copy_is_removed(films, tmp_path: Path):
    import shutil

    before = np.array(films.pixels[3])
    shutil.rmtree(resplit_dataset(films, tmp_path / "other", seed=1).root)
    np.testing.assert_array_equal(open_dataset(films.root).pixels[3], before)


def test_a_resplit_after_looks_at_test_says_so(films, tmp_path: Path):
    (films.root / LOOKS_FILE).write_text('{"split": "test"}\n{"split": "test"}\n')
    try:
        other = resplit_dataset(films, tmp_path / "other", seed=1)
    finally:
        (films.root / LOOKS_FILE).unlink()
    assert any("after 2 look(s) at the test split of films" in warning for warning in other.info.warnings)


def test_a_given_split_needs_one_that_was_given(films, tmp_path: Path):
    with pytest.raises(ConfigError, match="the films come with no split"):
        resplit_dataset(films, tmp_path / "other", split="given")
    assert not (tmp_path / "other").exists()


def test_a_finished_dataset_is_replaced_only_when_told_to(films, tmp_path: Path):
    first = resplit_dataset(films, tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="already holds a finished dataset"):
        resplit_dataset(films, tmp_path / "other", seed=2)
    assert open_dataset(tmp_path / "other").info == first.info
    second = resplit_dataset(films, tmp_path / "other", seed=2, overwrite=True)
    assert second.info.fingerprint != first.info.fingerprint


def test_a_refused_resplit_leaves_nothing_behind(films, tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no source 'phantom-z'"):
        resplit_dataset(films, tmp_path / "other", hold_out=["phantom-z"])
    assert list(tmp_path.iterdir()) == []


def test_looks_at_the_test_split_are_remembered_through_any_number_of_resplits(films, tmp_path: Path):
    seen = resplit_dataset(films, tmp_path / "seen", seed=1)
    (seen.root / LOOKS_FILE).write_text('{"split": "test"}\n')
    once = resplit_dataset(seen, tmp_path / "once", seed=2)
    twice = resplit_dataset(once, tmp_path / "twice", seed=1)
    assert [text for text in twice.info.warnings if "1 look(s) at the test split of seen" in text]


def test_a_dataset_whose_pixel_files_are_links_is_resplit_like_any_other(films, tmp_path: Path):
    (tmp_path / "store").mkdir()
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in films.root.iterdir():
        shutil.copy(file, tmp_path / "store" / file.name)
        (linked / file.name).symlink_to(Path("..") / "store" / file.name)
    other = resplit_dataset(linked, tmp_path / "deep" / "other", seed=3)
    assert not (other.root / "pixels-00000.npy").is_symlink()
    assert (other.pixels[0] == films.pixels[0]).all()
