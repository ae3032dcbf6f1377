"""Leakage: told with names, refused unless allowed, and then never forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from cxr_ray.data.leakage import checked_for_leakage, dataset_leaks, describe_leaks, find_leaks
from cxr_ray.data.splitting import with_column
from cxr_ray.data.store import Dataset
from cxr_ray.errors import DataError


def with_values(dataset: Dataset, name: str, changes: Mapping[int, object]) -> Dataset:
    values = [changes.get(row, value) for row, value in enumerate(dataset.column(name))]
    return dataclasses.replace(dataset, manifest=with_column(dataset.manifest, name, values))


def one_of_each_split(dataset: Dataset) -> dict[str, int]:
    return {split: int(dataset.rows(split)[0]) for split in ("train", "val", "test")}


def test_a_leaking_patient_is_told_with_its_films_and_how_ids_are_compared():
    paths = ["montgomery/7.png", "shenzhen/7.png"]
    text = describe_leaks(find_leaks(["train", "val"], ["7", "7"], ["a", "b"], paths))
    assert text.startswith(
        "1 patient(s) lie in more than one split, for example patient 7: montgomery/7.png in train, "
    )
    assert "shenzhen/7.png in val" in text
    assert "put the source in front of the id" in text


def test_a_leaking_film_is_told_without_talk_of_patients():
    leaks = find_leaks(["train", "test"], [None, None], ["a", "a"], ["one.png", "two.png"])
    expected = "1 duplicate film(s) lie in more than one split, for example one.png in train, two.png in test"
    assert describe_leaks(leaks) == expected


def test_unknown_patients_and_films_within_one_split_do_not_leak():
    assert find_leaks(["train", "val", "val"], [None, None, "p"], ["a", "b", "b"], ["1", "2", "3"]) == []


def test_three_examples_are_named_however_many_there_are(phantoms):
    train, test = phantoms.rows("train")[:5], phantoms.rows("test")[:5]
    changes = {int(row): f"same-{i}" for rows in (train, test) for i, row in enumerate(rows)}
    with pytest.raises(DataError) as raised:
        checked_for_leakage(with_values(phantoms, "duplicate_group", changes))
    message = str(raised.value)
    assert message.startswith(f"{phantoms.uri}: 5 duplicate film(s) lie in more than one split")
    assert message.count(" in test") == 3
    assert "cxr-ray data resplit" in message
    assert "--allow-leakage" in message


def test_a_dataset_without_leaks_passes_as_it_is(phantoms):
    assert checked_for_leakage(phantoms) is phantoms


def test_allowed_leakage_travels_with_the_dataset_to_every_worker(phantoms):
    rows = one_of_each_split(phantoms)
    leaking = with_values(phantoms, "patient_id", {rows["train"]: "p", rows["test"]: "p"})
    allowed = checked_for_leakage(leaking, allow=True)
    assert allowed.leakage == "1 patient(s) and 0 duplicate film(s) lie in more than one split"
    assert allowed.reference.open().leakage == allowed.leakage


def test_films_that_are_excluded_do_not_leak(phantoms):
    rows = one_of_each_split(phantoms)
    leaking = with_values(phantoms, "patient_id", {rows["val"]: "p", rows["test"]: "p"})
    assert len(dataset_leaks(leaking)) == 1
    flagged = with_values(leaking, "quality_flags", {rows["test"]: ["tinted"]})
    assert dataset_leaks(flagged.excluding(["tinted"])) == []


def test_train_and_tune_refuse_a_leaking_dataset_before_they_write_anything(phantoms, tmp_path: Path):
    from cxr_ray.training.launch import train
    from cxr_ray.tuning.run import tune

    rows = one_of_each_split(phantoms)
    leaking = with_values(phantoms, "patient_id", {rows["train"]: "p", rows["val"]: "p"})
    with pytest.raises(DataError, match=r"patient p: .* in train, .* in val"):
        train("tiny", leaking, workers=0, storage=tmp_path / "runs", quiet=True)
    with pytest.raises(DataError, match=r"patient p: .* in train, .* in val"):
        tune("tune_spaces/smoke.yaml", leaking, storage=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


def test_null_values_survive_a_changed_column():
    table = pa.table({"split": pa.array(["train", None])})
    assert with_column(table, "split", [None, "val"]).column("split").to_pylist() == [None, "val"]
