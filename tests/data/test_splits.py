"""Splits: shares, strata and groups on labels alone, without a film."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from cxr_ray.data.splits import SPLITS, group_ids, random_split

HALVES = {"val": 0.5, "calibration": 0.5}


def counts(labels: Sequence[str], splits: Sequence[str]) -> Counter[tuple[str, str]]:
    return Counter(zip(labels, splits, strict=True))


def test_a_patient_in_two_sources_and_a_chain_of_duplicates_are_one_group():
    patients = ["p1", "p1", None, "p2", None]
    groups = group_ids(patients, ["a", "b", "b", "c", "d"])
    assert groups.tolist() == [0, 0, 0, 3, 4]


def test_a_class_of_four_films_is_in_every_split():
    labels = ["rare"] * 4 + ["normal"] * 100
    splits = random_split(labels, ["s"] * 104, np.arange(104))
    assert [counts(labels, splits)["rare", split] for split in SPLITS] == [1, 1, 1, 1]


def test_sources_with_a_film_or_two_each_are_still_shared_out():
    labels = ["covid", "normal"] * 100
    splits = random_split(labels, [f"hospital {i // 4}" for i in range(200)], np.arange(200))
    for label in ("covid", "normal"):
        shares = [counts(labels, splits)[label, split] for split in SPLITS]
        assert shares == pytest.approx([65, 10, 10, 15], abs=1)


def test_halves_are_even_within_every_label_and_source():
    labels = ["covid"] * 40 + ["normal"] * 20
    sources = ["a", "b"] * 30
    halves = random_split(labels, sources, np.arange(60), shares=HALVES)
    by_stratum = Counter(zip(labels, sources, halves, strict=True))
    assert {by_stratum["covid", source, half] for source in "ab" for half in HALVES} == {10}
    assert {by_stratum["normal", source, half] for source in "ab" for half in HALVES} == {5}


@pytest.mark.parametrize("seed", range(20))
def test_halving_keeps_groups_whole_and_a_film_of_every_class_in_val(seed):
    random = np.random.default_rng(seed)
    labels = random.choice(["a", "b", "c", "d"], 30, p=[0.8, 0.1, 0.06, 0.04]).tolist()
    groups = group_ids([f"p{patient}" for patient in random.integers(0, 12, 30)], [str(i) for i in range(30)])
    halves = random_split(labels, ["s"] * 30, groups, shares=HALVES, seed=seed)
    assert all(halves[group] == half for group, half in zip(groups, halves, strict=True))
    assert {label for label, half in counts(labels, halves) if half == "val"} == set(labels)


def test_one_patient_cannot_be_halved():
    assert random_split(["a", "b"], ["s", "s"], np.zeros(2, np.int64), shares=HALVES) == ["val", "val"]
