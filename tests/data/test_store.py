"""Opening datasets from afar: a copy counts only if its pixels are those that were imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cxr_ray.data.phantom_dataset import make_phantoms
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.errors import DataError


@pytest.fixture
def remote(phantoms: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """A file system in memory that holds the phantoms at memory://films, and an empty cache on this node."""
    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(str(phantoms.root), "/films", recursive=True)
    yield memory
    memory.rm("/films", recursive=True)


def test_a_remote_dataset_opens_as_the_same_images(remote, phantoms):
    dataset = open_dataset("memory://films")
    assert dataset.root != phantoms.root
    np.testing.assert_array_equal(dataset.pixels[59], phantoms.pixels[59])


@pytest.mark.parametrize("file", ["pixels-00000.npy", "masks-00000.npy"])
def test_a_copy_whose_pixels_changed_on_the_way_is_refused_and_not_kept(remote, phantoms, tmp_path, file):
    whole = remote.cat(f"/films/{file}")
    remote.pipe(f"/films/{file}", whole[:-1] + bytes([whole[-1] ^ 1]))
    message = rf"memory://films: {file} does not match its sha256 .* Try again; if it stays so"
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            open_dataset("memory://films")
    assert not (tmp_path / "cache" / phantoms.info.fingerprint).exists()
    remote.pipe(f"/films/{file}", whole)
    np.testing.assert_array_equal(open_dataset("memory://films").pixels[0], phantoms.pixels[0])


def test_a_copy_without_one_of_its_pixel_files_is_refused(remote):
    remote.rm("/films/masks-00000.npy")
    with pytest.raises(DataError, match=r"films: masks-00000\.npy is missing"):
        open_dataset("memory://films")


def test_a_pixel_file_whose_header_is_damaged_is_named(tmp_path):
    dataset = make_phantoms(tmp_path / "films", images=40, size=64, quiet=True)
    shard = dataset.root / "pixels-00000.npy"
    shard.write_bytes(b"\0" * 20 + shard.read_bytes()[20:])
    with pytest.raises(DataError, match=r"pixel file pixels-00000\.npy is damaged"):
        open_dataset(dataset.root)
