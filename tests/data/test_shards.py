"""Pixel files: written piece by piece, read by anyone who reads NumPy's format."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest

from cxr_ray.data.shards import PixelStore, ShardWriter, write_shard

FILMS = np.random.default_rng(0).integers(0, 256, (10, 16, 16), np.uint8)


def test_a_shard_written_in_pieces_is_a_numpy_file_with_its_checksum(tmp_path):
    writer = ShardWriter(tmp_path, "pixels.npy", 16)
    for start in range(0, 10, 3):
        writer.append(FILMS[start : start + 3])
    assert not (tmp_path / "pixels.npy").exists()
    shard = writer.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), FILMS)
    assert shard.images == 10
    assert shard.sha256 == hashlib.sha256((tmp_path / "pixels.npy").read_bytes()).hexdigest()
    assert shard == write_shard(tmp_path, "pixels.npy", FILMS)


def test_a_shard_that_is_abandoned_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path, "pixels.npy", 16)
    writer.append(FILMS)
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def store(tmp_path) -> PixelStore:
    shards = [
        write_shard(tmp_path, f"{number}.npy", FILMS[a:b]) for number, (a, b) in enumerate([(0, 4), (4, 5), (5, 10)])
    ]
    return PixelStore(tmp_path, shards)


def test_rows_and_blocks_cross_files(store):
    assert len(store) == 10
    for row in range(10):
        np.testing.assert_array_equal(store[row], FILMS[row])
    for start in range(10):
        for stop in range(start + 1, 11):
            np.testing.assert_array_equal(store.block(start, stop), FILMS[start:stop])
    pieces = list(store.blocks(3))
    assert [start for start, _ in pieces] == [0, 3, 6, 9]
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), FILMS)


def test_a_store_travels_without_its_pixels(store):
    assert store[7].shape == (16, 16)
    carried = pickle.dumps(store)
    assert len(carried) < 2000
    np.testing.assert_array_equal(pickle.loads(carried)[7], FILMS[7])
