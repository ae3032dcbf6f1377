"""Phantoms: the same bytes everywhere, findings where radiology puts them, and nothing else that tells a class."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_ray.data.phantom import PHANTOM_CLASSES, Phantom, draw_phantom
from cxr_ray.data.phantom_looks import LOOKS, Look
from cxr_ray.errors import DataError

DISEASES = PHANTOM_CLASSES[1:]
FILMS_A_CLASS = 16


@pytest.fixture(scope="module")
def films() -> dict[str, list[Phantom]]:
    return {label: [draw_phantom(label, seed=3, index=i) for i in range(FILMS_A_CLASS)] for label in PHANTOM_CLASSES}


def digest(looks: Sequence[Look | None]) -> str:
    sha = hashlib.sha256()
    for i, label in enumerate(PHANTOM_CLASSES * 2):
        film = draw_phantom(label, seed=8, index=i, size=(224, 96)[i % 2], look=looks[i % len(looks)])
        for array in (film.pixels, film.finding_mask, film.lung_mask):
            sha.update(array.tobytes())
    return sha.hexdigest()


def halves(film: Phantom) -> tuple[np.ndarray, np.ndarray]:
    """The finding on the patient's right and on the left, parted at the middle between the lungs."""
    columns = np.flatnonzero(film.lung_mask.any(axis=0))
    middle = (columns[0] + columns[-1]) // 2
    return film.finding_mask[:, :middle], film.finding_mask[:, middle:]


def height_in_lungs(film: Phantom) -> float:
    """Mean height of the finding: 0 at the apices, 1 at the lowest lung pixel."""
    rows = np.flatnonzero(film.lung_mask.any(axis=1))
    return (np.nonzero(film.finding_mask)[0].mean() - rows[0]) / (rows[-1] - rows[0])


def test_the_classes_are_the_labels_of_the_contract_in_its_order() -> None:
    assert PHANTOM_CLASSES == ("normal", "covid", "lung_opacity", "viral_pneumonia", "tuberculosis")


def test_a_film_has_the_same_bytes_whatever_was_drawn_before_it() -> None:
    first = draw_phantom("covid", seed=1, index=5)
    draw_phantom("tuberculosis", seed=2, index=0)
    again = draw_phantom("covid", seed=1, index=5)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.finding_mask, again.finding_mask)
    assert not np.array_equal(first.pixels, draw_phantom("covid", seed=1, index=6).pixels)
    assert not np.array_equal(first.pixels, draw_phantom("covid", seed=2, index=5).pixels)


def test_a_film_has_the_same_bytes_on_a_processor_without_wide_vectors() -> None:
    numpy_was_built: Any = np.show_config(mode="dicts")
    plain = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(numpy_was_built["SIMD Extensions"].get("found", ())),
        "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,SSE4.2,SSE4.1",
        "OPENCV_IPP": "disabled",
    }
    answer = subprocess.run(
        [sys.executable, "-c", "from test_phantom import LOOKS, digest; print(digest([None]), digest(LOOKS))"],
        cwd=Path(__file__).parent,
        env=os.environ | plain,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [digest([None]), digest(LOOKS)]


def test_plain_films_are_those_that_former_versions_drew() -> None:
    assert digest([None]) == "2d28ffc495634ca9c0985c8deb0877c3affadb1f5455a4d35682cc897b402457"


def test_one_seed_and_index_are_one_person_whatever_the_label(films: dict[str, list[Phantom]]) -> None:
    for healthy, *ill in zip(*films.values(), strict=True):
        for film in ill:
            assert (film.sex, film.age, film.view) == (healthy.sex, healthy.age, healthy.view)
            assert np.array_equal(film.lung_mask, healthy.lung_mask)
            far = cv2.dilate(film.lung_mask.astype(np.uint8), np.ones((25, 25), np.uint8)) == 0
            assert np.array_equal(film.pixels[far], healthy.pixels[far])


@pytest.mark.parametrize("size", [64, 96, 300])
def test_every_size_shows_the_same_anatomy(size: int) -> None:
    full, film = (draw_phantom("lung_opacity", seed=4, index=2, size=s) for s in (224, size))
    for array in (film.pixels, film.finding_mask, film.lung_mask):
        assert array.shape == (size, size)
    assert film.pixels.dtype == np.uint8
    assert film.finding_mask.dtype == film.lung_mask.dtype == np.bool_
    restored = cv2.resize(film.pixels, (224, 224), interpolation=cv2.INTER_LINEAR)
    assert np.corrcoef(restored.ravel(), full.pixels.ravel())[0, 1] > 0.97
    assert abs(film.finding_mask.mean() - full.finding_mask.mean()) < 0.01


def test_only_films_of_healthy_people_have_no_finding(films: dict[str, list[Phantom]]) -> None:
    assert not any(film.finding_mask.any() for film in films["normal"])
    for label in DISEASES:
        assert min(film.finding_mask.sum() for film in films[label]) >= 30, label


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("label", DISEASES)
def test_findings_lie_inside_the_lungs(label: str, size: int) -> None:
    for i in range(8):
        film = draw_phantom(label, seed=6, index=i, size=size)
        assert film.lung_mask[film.finding_mask].mean() >= 0.95


@pytest.mark.parametrize("label", DISEASES)
def test_a_finding_brightens_the_film_where_its_mask_is(label: str, films: dict[str, list[Phantom]]) -> None:
    gains = []
    for film, healthy in zip(films[label], films["normal"], strict=True):
        difference = film.pixels.astype(float) - healthy.pixels
        gains.append(difference[film.finding_mask].mean())
        assert gains[-1] > 1
        assert gains[-1] > 4 * abs(difference[~film.finding_mask].mean())
    assert np.median(gains) > 8


def test_covid_is_bilateral_peripheral_and_in_the_mid_to_lower_zones(films: dict[str, list[Phantom]]) -> None:
    for film in films["covid"]:
        right, left = halves(film)
        assert right.any()
        assert left.any()
        assert height_in_lungs(film) > 0.4
        rows, columns = np.nonzero(film.lung_mask)
        from_middle = np.abs(columns - (columns.min() + columns.max()) / 2)
        ill = film.finding_mask[rows, columns]
        assert from_middle[ill].mean() > 1.1 * from_middle[~ill].mean()


def test_lung_opacity_keeps_to_one_lung_and_takes_either(films: dict[str, list[Phantom]]) -> None:
    sides = set()
    for film in films["lung_opacity"]:
        right, left = halves(film)
        assert min(right.sum(), left.sum()) == 0
        sides.add(bool(right.any()))
    assert sides == {True, False}


def test_viral_pneumonia_spreads_through_both_lungs(films: dict[str, list[Phantom]]) -> None:
    for film in films["viral_pneumonia"]:
        right, left = halves(film)
        assert min(right.sum(), left.sum()) > 0.25 * film.finding_mask.sum()
        assert film.finding_mask.sum() > 0.5 * film.lung_mask.sum()


def test_tuberculosis_lies_in_the_upper_zones_of_one_lung_or_both(films: dict[str, list[Phantom]]) -> None:
    assert max(height_in_lungs(film) for film in films["tuberculosis"]) < 0.4
    assert {all(half.any() for half in halves(film)) for film in films["tuberculosis"]} == {True, False}


def test_people_vary_in_sex_age_and_view_and_ap_films_show_less_lung() -> None:
    people = [draw_phantom("normal", seed=9, index=i, size=64) for i in range(40)]
    assert {film.sex for film in people} == {"F", "M"}
    assert all(18 <= film.age <= 90 for film in people)
    share = {view: np.mean([f.lung_mask.mean() for f in people if f.view == view]) for view in ("PA", "AP")}
    assert share["AP"] < share["PA"]


def test_what_lies_outside_the_lungs_does_not_tell_the_class() -> None:
    # Here, because the test above that starts a process imports this file.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = [PHANTOM_CLASSES[i % 5] for i in range(200)]
    measures = []
    for i, label in enumerate(labels):
        film = draw_phantom(label, seed=12, index=i, size=64)
        outside = film.pixels[~film.lung_mask]
        measures.append([outside.mean(), outside.std(), outside.min(), outside.max()])
    guess = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    assert cross_val_score(guess, np.array(measures), labels, cv=5).mean() < 0.32


def test_an_unknown_label_names_the_allowed_ones_and_the_closest() -> None:
    with pytest.raises(DataError, match=r"'covdi' is not one of normal, covid.*did you mean 'covid'"):
        draw_phantom("covdi", seed=0, index=0)


def test_a_film_too_small_to_show_a_nodule_is_refused() -> None:
    with pytest.raises(DataError, match="64 or more"):
        draw_phantom("normal", seed=0, index=0, size=63)
