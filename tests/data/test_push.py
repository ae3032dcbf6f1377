"""Datasets on their way to a cluster's storage and from there to a node, over S3's own protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from cxr_ray.data.phantom_dataset import make_phantoms
from cxr_ray.data.push import push_dataset
from cxr_ray.data.store import LOOKS_FILE, Dataset, open_dataset
from cxr_ray.errors import DataError
from cxr_ray.paths import Location, locate
from cxr_ray.progress import ProgressLine

LOOK = '{"time": "2026-01-01T00:00:00+00:00", "bundle": "b", "split": "test", "images": 7}\n'
S3 = Callable[[str], str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_phantoms(tmp_path / "dataset", images=40, size=64, quiet=True)


def times(uri: str) -> dict[str, int]:
    place = locate(uri)
    return {info.base_name: info.mtime_ns for info in place.filesystem.get_file_info(pafs.FileSelector(place.path))}


def test_a_pushed_dataset_opens_from_object_storage_as_the_same_films(s3: S3, dataset, cache):
    where = push_dataset(dataset, s3("films"), quiet=True)
    opened = open_dataset(where.uri)
    assert opened.info == dataset.info
    assert opened.root == cache / dataset.info.fingerprint
    assert opened.masks is not None and dataset.masks is not None
    for row in range(40):
        np.testing.assert_array_equal(opened.pixels[row], dataset.pixels[row])
        np.testing.assert_array_equal(opened.masks[row], dataset.masks[row])
    assert opened.manifest.equals(dataset.manifest)


def test_pushing_again_sends_nothing(s3: S3, dataset):
    push_dataset(dataset, s3("films"), quiet=True)
    before = times(s3("films"))
    push_dataset(dataset, s3("films"), quiet=True)
    assert times(s3("films")) == before
    assert "push.json" not in before


def test_a_push_that_broke_off_is_no_dataset_and_sends_only_what_is_missing_when_run_again(
    s3: S3, dataset, monkeypatch
):
    sent = ProgressLine.advance

    def break_off(line: ProgressLine, *args, **kwargs) -> None:
        if "pixels-00000.npy" in times(s3("films")):
            raise ConnectionResetError("connection reset by peer")
        sent(line, *args, **kwargs)

    with monkeypatch.context() as breaking:
        breaking.setattr(ProgressLine, "advance", break_off)
        with pytest.raises(DataError, match=r"connection reset by peer\).*run the same command again: it goes on"):
            push_dataset(dataset, s3("films"), quiet=True)
    with pytest.raises(DataError, match="is not a dataset"):
        open_dataset(s3("films"))
    before = times(s3("films"))
    push_dataset(dataset, s3("films"), quiet=True)
    after = times(s3("films"))
    assert {name: after[name] for name in ("manifest.parquet", "pixels-00000.npy")} == {
        name: before[name] for name in ("manifest.parquet", "pixels-00000.npy")
    }
    assert open_dataset(s3("films")).info == dataset.info


def test_files_of_another_push_are_not_taken_for_this_datasets_own(s3: S3, dataset, tmp_path):
    other = make_phantoms(tmp_path / "other", images=40, size=64, seed=1, quiet=True)
    there = locate(s3("films"))
    push_dataset(other, s3("films"), quiet=True)
    there.filesystem.delete_file(there.child("dataset.json").path)
    there.child("push.json").write_json({"manifest.parquet": "of the other"})
    push_dataset(dataset, s3("films"), quiet=True)
    np.testing.assert_array_equal(open_dataset(s3("films")).pixels[0], dataset.pixels[0])


def test_another_dataset_is_replaced_only_when_told_to_and_its_looks_stay(s3: S3, dataset, tmp_path):
    other = make_phantoms(tmp_path / "other", images=40, size=64, seed=1, quiet=True)
    push_dataset(other, s3("films"), quiet=True)
    locate(s3("films")).child(LOOKS_FILE).write_bytes(LOOK.encode())
    with pytest.raises(DataError, match=r"another dataset lies here\. Give --overwrite"):
        push_dataset(dataset, s3("films"), quiet=True)
    push_dataset(dataset, s3("films"), overwrite=True, quiet=True)
    assert open_dataset(s3("films")).info == dataset.info
    assert locate(s3("films")).child(LOOKS_FILE).read_bytes().decode() == LOOK


def test_looks_at_the_test_split_travel_with_the_dataset(s3: S3, dataset):
    (dataset.root / LOOKS_FILE).write_text(LOOK)
    push_dataset(dataset, s3("films"), quiet=True)
    push_dataset(dataset, s3("films"), quiet=True)
    assert locate(s3("films")).child(LOOKS_FILE).read_bytes().decode() == LOOK


def test_a_folder_with_other_things_is_left_alone(dataset, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex', and no dataset"):
        push_dataset(dataset, tmp_path / "thesis", quiet=True)


def test_a_damaged_dataset_is_not_pushed(dataset, tmp_path):
    pixels = dataset.root / "pixels-00000.npy"
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        DataError, match=r"pixel file pixels-00000\.npy does not match its sha256\. The dataset is dama"
    ):
        push_dataset(dataset, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_storage_that_refuses_is_one_sentence(s3: S3, dataset):
    nowhere = s3("films").replace("s3://films-", "s3://nobody-")
    with pytest.raises(DataError, match="the dataset cannot be written here"):
        push_dataset(dataset, nowhere, quiet=True)


def test_a_file_that_went_missing_there_is_sent_again_and_only_that(s3: S3, dataset):
    place = push_dataset(dataset, s3("films"), quiet=True)
    before = times(s3("films"))
    place.filesystem.delete_file(place.child("pixels-00000.npy").path)
    push_dataset(dataset, s3("films"), quiet=True)
    after = times(s3("films"))
    assert after["masks-00000.npy"] == before["masks-00000.npy"]
    assert open_dataset(s3("films")).info == dataset.info


def test_a_replacement_that_fails_at_its_first_step_leaves_the_old_dataset(dataset, tmp_path, monkeypatch):
    other = make_phantoms(tmp_path / "other", images=40, size=64, seed=1, quiet=True)
    push_dataset(other, tmp_path / "there", quiet=True)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as breaking:
        breaking.setattr(Location, "write_bytes", refuse)
        with pytest.raises(DataError, match="run the same command again"):
            push_dataset(dataset, tmp_path / "there", overwrite=True, quiet=True)
    assert open_dataset(tmp_path / "there").info == other.info
    push_dataset(dataset, tmp_path / "there", overwrite=True, quiet=True)
    assert open_dataset(tmp_path / "there").info == dataset.info
