"""Batches: the same films in the same order and the same augmentation, whoever loads them."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cxr_ray.data.augment import AugmentConfig
from cxr_ray.data.loader import FilmDataset, TrainSampler, eval_batches, train_loader
from cxr_ray.data.shards import write_shard
from cxr_ray.data.splitting import with_column
from cxr_ray.data.store import Dataset

STRONG = AugmentConfig(exposure=1, geometry=1)
LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def epoch_of(sampler: TrainSampler, number: int) -> list[list[tuple[int, int, int]]]:
    sampler.epoch = number
    return list(sampler)


def load(dataset: Dataset, processes: int, epoch: int, **sampling) -> list[tuple[torch.Tensor, ...]]:
    rows = dataset.rows("train")
    sampler = TrainSampler(dataset.labels[rows], 8, 0, 1, seed=3, **sampling)
    films = FilmDataset(dataset, rows, 64, STRONG, seed=3)
    loader = train_loader(films, sampler, processes, pin_memory=False)
    sampler.epoch = epoch
    return [tuple(batch) for batch in loader]


def test_an_epoch_has_every_image_once_and_the_next_another_order():
    sampler = TrainSampler(LABELS, 10, 0, 1, seed=0)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert sorted(position for batch in first for _, position, _ in batch) == list(range(100))
    assert [item[1] for batch in first for item in batch] != [item[1] for batch in second for item in batch]


def test_any_epoch_can_be_taken_up_without_those_before_it():
    fresh, used = (TrainSampler(LABELS, 10, 0, 1, seed=0, sampling="class_balanced") for _ in range(2))
    for number in range(5):
        epoch_of(used, number)
    assert epoch_of(used, 5) == epoch_of(fresh, 5)


@pytest.mark.parametrize("sampling", ["shuffle", "class_balanced"])
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_out_the_batches_that_one_would_have(sampling, workers):
    alone = epoch_of(TrainSampler(LABELS, 10, 0, 1, seed=1, sampling=sampling), 2)
    parts = [epoch_of(TrainSampler(LABELS, 10, rank, workers, seed=1, sampling=sampling), 2) for rank in range(workers)]
    for number, batch in enumerate(alone):
        assert sorted(batch) == sorted(item for part in parts for item in part[number])


def test_class_balanced_batches_have_every_class_equally_often():
    batches = epoch_of(TrainSampler(LABELS, 10, 0, 1, seed=0, sampling="class_balanced"), 0)
    positions = [position for batch in batches for _, position, _ in batch]
    assert len(positions) == 100
    assert [count for _, count in sorted(Counter(LABELS[positions].tolist()).items())] == pytest.approx(
        [33, 33, 33], abs=1
    )
    times = Counter(positions)
    assert {times[position] for position in range(90, 100)} <= {3, 4}, "images of a rare class come equally often"
    assert max(times[position] for position in range(60)) == 1, "no image of a frequent class comes twice"


def test_a_film_that_comes_again_is_augmented_anew(phantoms):
    films = FilmDataset(phantoms, phantoms.rows("train"), 64, STRONG, seed=0)
    first, again, same = films[0, 5, 0][0], films[0, 5, 1][0], films[0, 5, 0][0]
    assert not np.array_equal(first, again)
    np.testing.assert_array_equal(first, same)


@pytest.mark.parametrize("sampling", ["shuffle", "class_balanced"])
def test_loader_processes_deliver_what_the_worker_itself_would(phantoms, sampling):
    here, there = (load(phantoms, processes, 4, sampling=sampling) for processes in (0, 2))
    assert len(here) == len(there) > 2
    for one, other in zip(here, there, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_validation_has_every_film_once_in_order_over_all_workers(phantoms):
    rows = phantoms.rows("val")
    films = FilmDataset(phantoms, rows, 64)
    got = [torch.cat([batch[2] for batch in eval_batches(films, 4, rank, 2)]).tolist() for rank in range(2)]
    assert sorted(got[0] + got[1]) == rows.tolist()
    assert got[0] == rows[::2].tolist()


def test_loader_processes_do_not_copy_the_pixels(phantoms, tmp_path: Path):
    """Each process maps the file; a copy of these 256 MB would show in the memory that is its own."""
    images = 4096
    block = np.random.default_rng(0).integers(0, 255, (256, 256, 256), np.uint8)
    shards = [write_shard(tmp_path, f"pixels-{number}.npy", block) for number in range(images // 256)]
    one = phantoms.manifest.slice(0, 1)
    manifest = with_column(pa.concat_tables([one] * images), "split", ["train"] * images)
    info = phantoms.info.model_copy(update={"shards": shards, "image_size": 256})
    dataset = dataclasses.replace(phantoms, root=tmp_path, info=info, manifest=manifest)
    rows = dataset.rows("train")
    sampler = TrainSampler(dataset.labels[rows], 64, 0, 1, seed=0)
    loader = train_loader(FilmDataset(dataset, rows, 64), sampler, 2, pin_memory=False)
    batches = iter(loader)
    for _ in range(len(sampler) - 4):  # nearly all rows have been read by then
        next(batches)
    own = [private_bytes(worker.pid) for worker in loader._iterator._workers]  # type: ignore[attr-defined]
    mine = private_bytes(os.getpid())
    del batches
    assert len(own) == 2
    assert max(own) < mine + 100e6


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Dirty", "Anonymous:")))
