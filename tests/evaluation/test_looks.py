from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cxr_ray.data.store import LOOKS_FILE
from cxr_ray.evaluation.looks import UNKNOWN, Look, looks_sentence, read_looks, record_look


def _look(folder: Path, bundle: str = "b") -> list[Look]:
    return record_look(str(folder), bundle_id=bundle, experiment=None, split="test", images=7)


def _looks(bundles: Sequence[str]) -> list[Look]:
    return [Look(time="t", bundle=name, split="test", images=1) for name in bundles]


def test_there_are_no_looks_where_nobody_looked(tmp_path: Path) -> None:
    assert read_looks(str(tmp_path)) == []


def test_looks_come_back_in_the_order_they_were_made(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        looks = _look(tmp_path, name)
    assert [look.bundle for look in looks] == ["first", "second", "third"]
    assert looks == read_looks(str(tmp_path))


def test_looks_at_the_same_time_all_stay(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: _look(tmp_path, str(number)), range(64)))
    assert sorted(int(look.bundle) for look in read_looks(str(tmp_path))) == list(range(64))


def test_a_look_torn_by_a_crash_counts_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    _look(tmp_path)
    with (tmp_path / LOOKS_FILE).open("a") as stream:
        stream.write('{"time": "2026-')
    assert [look.bundle for look in _look(tmp_path, "next")] == ["b", UNKNOWN, "next"]


@pytest.mark.parametrize(
    ("bundles", "expected"),
    [
        ([], "Nobody has looked"),
        (["a"], "first look"),
        (["a", "a"], "2 times, always by the same bundle"),
        (["a", "b", "a"], "3 times, by 2 bundles"),
    ],
)
def test_the_sentence_says_how_often_and_by_how_many_bundles(bundles: list[str], expected: str) -> None:
    sentence = looks_sentence(_looks(bundles))
    assert expected in sentence
    assert ("luck" in sentence) == (len(set(bundles)) > 1)
