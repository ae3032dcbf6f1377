"""Who goes where, by each strategy."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest

from cxr_ray.data.split_strategies import Films, SplitRecord, assign_splits, parse_ratios, split_request
from cxr_ray.errors import ConfigError, DataError

SOURCES = ("north", "south", "east")


def films(count: int = 240, **changes) -> Films:
    columns = {
        "labels": [("normal", "covid")[i % 2] for i in range(count)],
        "sources": [SOURCES[i // 2 % 3] for i in range(count)],
        "patient_ids": [None] * count,
        "duplicate_groups": [str(i) for i in range(count)],
        "given": [None] * count,
    }
    return Films(**(columns | changes))


def split(some: Films, seed: int = 0, **request) -> tuple[list[str], list[str]]:
    record = SplitRecord(**request)
    return assign_splits(some, record, seed=seed, where="films")


def test_ratios_decide_the_shares():
    splits, warnings = split(films(), ratios=parse_ratios("50/25/5/20"))
    assert {name: round(count / 240, 2) for name, count in Counter(splits).items()} == pytest.approx(
        {"train": 0.5, "val": 0.25, "calibration": 0.05, "test": 0.2}, abs=0.03
    )
    assert warnings == []


def test_a_share_of_nought_leaves_a_split_empty():
    splits, _ = split(films(), ratios=parse_ratios("80/20/0/0"))
    assert set(splits) == {"train", "val"}


@pytest.mark.parametrize("text", ["65/10/10", "a/b/c/d", "65/10/10/-1", "0/10/10/10", "10/0/10/10", "nan/1/1/1", ""])
def test_ratios_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match=r"--ratios: .* is not four numbers.*for example 65/10/10/15"):
        parse_ratios(text)


def test_held_out_sources_are_the_test_split_and_no_other_films_are():
    some = films()
    splits, warnings = split(some, strategy="source-holdout", holdout=["south"])
    assert {source for source, name in zip(some.sources, splits, strict=True) if name == "test"} == {"south"}
    assert {source for source, name in zip(some.sources, splits, strict=True) if name != "test"} == {"north", "east"}
    counts = Counter(splits)
    assert counts["test"] == 80
    assert counts["val"] == pytest.approx(160 * 10 / 85, abs=3)
    assert warnings == []


def test_patients_and_films_of_a_held_out_source_are_not_met_in_training_under_another_source():
    patients: list[str | None] = [None] * 240
    patients[0], patients[2] = "p", "p"  # north and south
    groups = [str(i) for i in range(240)]
    groups[4] = groups[3]  # east and south
    splits, warnings = split(
        films(patient_ids=patients, duplicate_groups=groups), strategy="source-holdout", holdout=["south"]
    )
    assert splits[0] == splits[4] == "test"
    assert warnings == [
        "2 film(s) of other sources lie in test with the held-out ones, whose patients or films they show"
    ]


def test_a_class_that_only_the_held_out_source_has_cannot_be_learnt():
    sources = [("north", "south")[i % 2] for i in range(240)]  # the class is the source
    with pytest.raises(DataError, match=r"class 'covid' has no image in train and val .*120 of them in test"):
        split(films(sources=sources), strategy="source-holdout", holdout=["south"])


def test_a_class_that_the_held_out_source_lacks_is_named():
    labels = [("normal", "covid", "tuberculosis")[i % 3] for i in range(240)]
    sources = ["north" if label == "tuberculosis" else SOURCES[i // 3 % 3] for i, label in enumerate(labels)]
    _, warnings = split(films(labels=labels, sources=sources), strategy="source-holdout", holdout=["east"])
    assert warnings == ["the held-out sources have no tuberculosis: test says nothing about it"]


def test_a_source_that_there_is_not_is_named_with_those_there_are():
    with pytest.raises(
        ConfigError, match=r"no source 'sooth' \(did you mean 'south'\?\); there are east, north, south"
    ):
        split(films(), strategy="source-holdout", holdout=["sooth"])
    with pytest.raises(ConfigError, match="leaves nothing to learn from"):
        split(films(), strategy="source-holdout", holdout=list(SOURCES))


def test_one_patient_and_one_film_stay_together_in_every_strategy():
    patients: list[str | None] = [f"p{i // 5}" for i in range(240)]
    groups = [str(i - i % 7 % 2) for i in range(240)]
    requests: list[dict[str, Any]] = [{"strategy": "random"}, {"strategy": "source-holdout", "holdout": ["east"]}]
    for request in requests:
        some = films(patient_ids=patients, duplicate_groups=groups, sources=[SOURCES[i // 40 % 3] for i in range(240)])
        splits, _ = split(some, **request)
        for keys in (patients, groups):
            found = defaultdict(set)
            for key, name in zip(keys, splits, strict=True):
                found[key].add(name)
            assert all(len(names) == 1 for names in found.values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "random"),
        ({"has_given": True}, "given"),
        ({"has_given": True, "ratios": "1/1/1/1"}, "random"),
        ({"has_given": True, "strategy": "random"}, "random"),
        ({"holdout": ["north"]}, "source-holdout"),
        ({"holdout": ["north"], "has_given": True}, "source-holdout"),
    ],
)
def test_the_strategy_follows_from_what_is_asked_for(arguments, expected):
    defaults = {"strategy": None, "ratios": None, "holdout": [], "has_given": False}
    assert split_request(**(defaults | arguments)).strategy == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"strategy": "rnadom"},
            r"no split 'rnadom' \(did you mean 'random'\?\); there are random, given, source-holdout",
        ),
        ({"strategy": "source-holdout"}, "needs the sources to hold out"),
        ({"strategy": "random", "holdout": ["north"]}, "a random split holds nothing out"),
        ({"strategy": "given"}, "the films come with no split"),
        ({"strategy": "given", "has_given": True, "ratios": "1/1/1/1"}, "a given split has shares of its own"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, message):
    defaults = {"strategy": None, "ratios": None, "holdout": [], "has_given": False}
    with pytest.raises(ConfigError, match=message):
        split_request(**(defaults | arguments))
