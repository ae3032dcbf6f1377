"""Flags: planted defects get theirs, clean films none, and thresholds follow the dataset between their bounds."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import ArrayLike
from pydantic import ValidationError

from cxr_ray.data.decode import decode_square
from cxr_ray.data.phantom import PHANTOM_CLASSES, draw_phantom
from cxr_ray.data.quality import MEASURES, measure_orientation, measure_quality
from cxr_ray.data.quality_flags import FLAGS, FlagResult, Threshold, flag_dataset, flag_films
from cxr_ray.data.resize import Fit, fit_square
from cxr_ray.errors import DataError

SIZE = 128
COUNT = 100
PLANTED = slice(0, COUNT, 10)


def blurred(film: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(film, (0, 0), 2.5)


def brighter(film: np.ndarray, gain: float) -> np.ndarray:
    return np.clip(film * gain, 0, 255).astype(np.uint8)


def bordered(film: np.ndarray) -> np.ndarray:
    square = np.zeros_like(film)
    edge = len(film) * 5 // 6
    square[:edge, -edge:] = cv2.resize(film, (edge, edge), interpolation=cv2.INTER_AREA)
    return square


def painted_over(film: np.ndarray) -> np.ndarray:
    film = film.copy()
    edge = len(film) // 5
    film[2 * edge : 3 * edge, 2 * edge : 3 * edge] = 255
    return film


DEFECTS = {
    "under_exposed": lambda film: brighter(film, 0.3),
    "over_exposed": lambda film: brighter(film, 2.5),
    "low_contrast": lambda film: (110 + 0.15 * film).astype(np.uint8),
    "blurred": blurred,
    "saturated": painted_over,
    "wide_border": bordered,
    "inverted": lambda film: 255 - film,
    "upside_down": lambda film: film[::-1, ::-1],
    "sideways": np.rot90,
}


@functools.cache
def clean_films() -> np.ndarray:
    """100 phantoms of seed 4, read only."""
    stack = np.stack([draw_phantom(PHANTOM_CLASSES[i % 5], seed=4, index=i, size=SIZE).pixels for i in range(COUNT)])
    stack.setflags(write=False)
    return stack


def flagged(
    films: np.ndarray,
    *,
    tint: ArrayLike = 0.0,
    width: ArrayLike = 1000,
    height: ArrayLike = 1000,
    fit: Fit = "squash",
) -> FlagResult:
    """The flags of films as an import would measure them."""
    rows = [measure_quality(film) for film in films]
    columns = {name: np.array([row[name] for row in rows], np.float32) for name in MEASURES}
    pieces = (films[start : start + 64] for start in range(0, len(films), 64))
    columns |= {name: values.astype(np.float32) for name, values in measure_orientation(pieces).items()}
    for name, values in {"tint": tint, "width": width, "height": height}.items():
        columns[name] = np.broadcast_to(values, len(films))
    return flag_dataset(pa.table(columns), fit=fit)


def measures(count: int = COUNT, **changed: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of a clean dataset, spread as on real films."""
    rng = np.random.default_rng(2)
    typical = {
        "brightness": (0.55, 0.06),
        "contrast": (0.5, 0.08),
        "sharpness": (0.6, 0.03),
        "saturated": (0.0, 0.0),
        "film_border": (0.0, 0.0),
        "tint": (0.0, 0.0),
        "elongation": (1.1, 0.02),
        "inversion": (-1.1, 0.2),
        "upside_down": (-0.7, 0.15),
        "sideways": (-0.8, 0.15),
    }
    return {name: rng.normal(mean, spread, count) for name, (mean, spread) in typical.items()} | changed


def with_flag(result: FlagResult, flag: str) -> np.ndarray:
    return np.array([flag in flags for flags in result.flags], bool)


def test_flags_have_the_names_that_commands_and_reports_use():
    assert set(FLAGS) == {*DEFECTS, "tinted", "odd_aspect"}
    assert len(FLAGS) == len(set(FLAGS))


def test_clean_phantoms_get_next_to_no_flags():
    result = flagged(clean_films())
    assert sum(map(len, result.flags)) <= 2
    assert set(result.thresholds) == set(FLAGS)


@pytest.mark.parametrize("flag", DEFECTS)
def test_planted_defects_are_flagged_and_their_neighbours_are_not(flag):
    films = clean_films().copy()
    films[PLANTED] = [DEFECTS[flag](film) for film in films[PLANTED]]
    found = with_flag(flagged(films), flag)
    assert found[PLANTED].sum() >= 9
    assert found.sum() - found[PLANTED].sum() <= 1


def test_tinted_and_elongated_films_are_flagged():
    tint, width = np.zeros(COUNT), np.full(COUNT, 1000)
    tint[:40], width[50:53], width[60:63] = 0.15, 2000, 400
    result = flagged(clean_films(), tint=tint, width=width)
    assert np.flatnonzero(with_flag(result, "tinted")).tolist() == list(range(40))
    assert np.flatnonzero(with_flag(result, "odd_aspect")).tolist() == [50, 51, 52, 60, 61, 62]


def test_every_defect_of_a_film_is_named_in_the_order_of_the_flags():
    films, tint = clean_films().copy(), np.zeros(COUNT)
    films[7], tint[7] = painted_over(blurred(films[7])), 0.2
    assert flagged(films, tint=tint).flags[7] == ["blurred", "saturated", "tinted"]


def test_a_dataset_that_is_brighter_as_a_whole_is_not_flagged_wholesale():
    usual, bright = measures(), measures(brightness=measures()["brightness"] + 0.12)
    thresholds = [flag_films(each).thresholds["over_exposed"].value for each in (usual, bright)]
    assert thresholds[1] > thresholds[0]
    assert with_flag(flag_films(bright), "over_exposed").mean() < 0.05


def test_a_dataset_whose_films_hardly_differ_is_not_flagged_for_the_little_they_do():
    alike = measures(brightness=np.random.default_rng(0).normal(0.55, 0.001, COUNT))
    alike["brightness"][0] = 0.6  # fifty deviations from the median, and a good film
    assert flag_films(alike).flags == [[] for _ in range(COUNT)]


@pytest.mark.parametrize("flag", DEFECTS)
def test_a_dataset_that_is_bad_throughout_is_flagged_although_no_film_stands_out(flag):
    films = np.stack([DEFECTS[flag](film) for film in clean_films()])
    assert with_flag(flagged(films), flag).mean() > 0.9


def test_a_threshold_says_what_it_compares_and_how_it_was_found():
    spread = np.linspace(0.1, 0.9, 101)
    found = flag_films(measures(101, brightness=spread)).thresholds
    severe = found["under_exposed"]
    assert (severe.measure, severe.direction, severe.found_by) == ("brightness", "below", "severe bound")
    assert (severe.median, severe.mad) == (pytest.approx(0.5), pytest.approx(0.2))
    assert severe.value == severe.severe < severe.mild
    assert found["tinted"].found_by == "mild bound"
    followed = flag_films(measures(101, brightness=0.5 + (spread - 0.5) * 0.3)).thresholds["under_exposed"]
    assert followed.found_by == "median and MAD"
    assert followed.value == pytest.approx(0.5 - 2.5 * 1.4826 * 0.06)


def test_a_threshold_survives_json_and_refuses_what_it_does_not_know():
    threshold = flag_films(measures()).thresholds["over_exposed"]
    assert Threshold.model_validate_json(threshold.model_dump_json()) == threshold
    with pytest.raises(ValidationError, match="colour"):
        Threshold.model_validate(threshold.model_dump() | {"colour": 1})


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_tiny_datasets_of_good_films_get_no_flags(count):
    assert flagged(clean_films()[:count]).flags == [[] for _ in range(count)]


def test_one_bad_film_among_five_is_found():
    for flag, spoil in DEFECTS.items():
        films = clean_films()[10:15].copy()
        films[2] = spoil(films[2])
        assert np.flatnonzero(with_flag(flagged(films), flag)).tolist() == [2], flag


@pytest.mark.parametrize("level", [0, 255])
def test_films_of_one_gray_level_are_flagged_among_others_and_alone(level):
    plain = np.full((1, SIZE, SIZE), level, np.uint8)
    expected = {"low_contrast", "saturated", "wide_border", "under_exposed" if level == 0 else "over_exposed"}
    for films in (plain, np.concatenate([plain, clean_films()[:20]])):
        result = flagged(films)
        assert expected <= set(result.flags[0]) <= expected | {"blurred"}
        assert result.flags[1:] == [[]] * (len(films) - 1)


def test_padding_is_no_border_of_the_film_but_blades_inside_it_are():
    films = [cv2.resize(film, (SIZE, SIZE * 2 // 3)) for film in clean_films()[:20]]
    films[4] = cv2.resize(bordered(clean_films()[4]), (SIZE, SIZE * 2 // 3))
    padded = np.stack([fit_square(film, SIZE, "pad") for film in films])
    result = flagged(padded, width=1500, height=1000, fit="pad")
    assert np.flatnonzero(with_flag(result, "wide_border")).tolist() == [4]


def test_a_measure_that_is_missing_short_or_not_finite_is_refused_by_name():
    complete = measures()
    without = {name: values for name, values in complete.items() if name != "tint"}
    with pytest.raises(DataError, match="'tint' is missing, which flag 'tinted' needs"):
        flag_films(without)
    with pytest.raises(DataError, match=r"'contrast' needs one finite number for each of the 100 film\(s\)"):
        flag_films(complete | {"contrast": complete["contrast"][:50]})
    with pytest.raises(DataError, match="'brightness' needs one finite number"):
        flag_films(complete | {"brightness": np.full(COUNT, np.nan)})


@pytest.mark.real_data
def test_real_films_with_planted_defects_and_an_upside_down_original_are_found(real_films):
    names = [*list_of(real_films / "metadata.csv")[::4], *list_of(real_films / "originals" / "metadata.csv")]
    decoded = [decode_square((real_films / name).read_bytes(), 224, "squash") for name in names]
    films = np.stack([square for square, _ in decoded])
    tint, width, height = np.array([(film.tint, film.width, film.height) for _, film in decoded]).T
    before = flagged(films, tint=tint, width=width, height=height)
    seen = Counter(flag for flags in before.flags for flag in flags)
    assert with_flag(before, "upside_down")[
        names.index("originals/covid/radiography_db_COVID-3063.png")
    ]  # known by eye
    assert max(seen["upside_down"], seen["inverted"], seen["sideways"]) <= 4
    assert sum(map(len, before.flags)) - seen["tinted"] < 0.12 * len(films)
    photographs = np.flatnonzero(with_flag(before, "tinted"))
    assert np.mean(["tuberculosis" in names[row] for row in photographs]) > 0.8

    order = np.random.default_rng(0).permutation(len(films))
    places = {flag: order[20 * number : 20 * number + 20] for number, flag in enumerate(DEFECTS)}
    for flag, rows in places.items():
        films[rows] = [DEFECTS[flag](film) for film in films[rows]]
    after = flagged(films, tint=tint, width=width, height=height)
    recall = {flag: with_flag(after, flag)[rows].sum() for flag, rows in places.items()}
    assert min(recall.values()) >= 17, recall


def list_of(metadata: Path) -> list[str]:
    with metadata.open(newline="") as stream:
        return [row["path"] for row in csv.DictReader(stream)]
