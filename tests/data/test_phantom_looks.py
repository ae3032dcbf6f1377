"""Looks of phantoms: a source can be told by them, the disease cannot, and what the masks say stays true."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_ray.data.decode import decode_bytes
from cxr_ray.data.phantom import PHANTOM_CLASSES, Phantom, draw_phantom
from cxr_ray.data.phantom_looks import LOOKS, Look, apply_look, colour, mean_tint

PEOPLE = 80
A_LOOK = range(len(LOOKS))


@pytest.fixture(scope="module")
def people() -> list[Phantom]:
    return [draw_phantom("normal", seed=21, index=i) for i in range(PEOPLE)]


def wear(person: Phantom, look: Look, index: int) -> np.ndarray:
    return apply_look(person.pixels, person.lung_mask, look, np.random.default_rng(index))


def where_marked(person: Phantom, look: Look, index: int) -> np.ndarray:
    """Where a film's marker lies: where the film changes without it."""
    bare = replace(look, marker=replace(look.marker, text="", plate=None))
    return wear(person, look, index) != wear(person, bare, index)


@pytest.mark.parametrize("number", A_LOOK)
def test_a_marker_is_seen_on_every_film_and_never_over_the_lungs(number: int, people: list[Phantom]) -> None:
    for i, person in enumerate(people):
        marked = where_marked(person, LOOKS[number], i)
        assert 150 < marked.sum() < 1200
        assert not (marked & person.lung_mask).any()


def test_every_source_has_its_marker_in_a_place_of_its_own(people: list[Phantom]) -> None:
    taken = np.zeros((224, 224), int)
    for look in LOOKS:
        taken += np.any([where_marked(person, look, i) for i, person in enumerate(people[:20])], axis=0)
    assert taken.max() == 1


@pytest.mark.parametrize("number", A_LOOK)
def test_blades_cover_edges_and_no_lung(number: int, people: list[Phantom]) -> None:
    look = replace(LOOKS[number], black=0.3)  # so that nothing but blades is black
    without = replace(look, blades=(-99, -99))
    across, down = [], []
    for i, person in enumerate(people):
        covered = wear(person, look, i) != wear(person, without, i)
        assert not (covered & person.lung_mask).any()
        across.append(covered[112].sum() / 2)
        down.append(covered[:, 112].sum() / 2)
    for widths, mean in ((across, look.blades[0]), (down, look.blades[1])):
        # What strays below nothing is nothing, and the lungs of a few leave less room.
        assert mean - 1 < np.mean(widths) < mean + 2


@pytest.mark.parametrize("number", A_LOOK)
def test_a_look_keeps_the_masks_and_what_the_lungs_show(number: int) -> None:
    for i in range(8):
        plain = draw_phantom("covid", seed=2, index=i)
        worn = draw_phantom("covid", seed=2, index=i, look=LOOKS[number])
        assert np.array_equal(worn.finding_mask, plain.finding_mask)
        assert np.array_equal(worn.lung_mask, plain.lung_mask)
        lungs = plain.lung_mask
        agreement: Any = spearmanr(worn.pixels[lungs], plain.pixels[lungs])
        assert agreement.statistic > 0.9
        assert (worn.pixels != plain.pixels).mean() > 0.3


@pytest.mark.parametrize("number", A_LOOK)
@pytest.mark.parametrize("label", PHANTOM_CLASSES[1:])
def test_a_finding_still_shows_under_every_look(label: str, number: int) -> None:
    gains = []
    for i in range(5):
        ill, healthy = (draw_phantom(name, seed=3, index=i, look=LOOKS[number]) for name in (label, "normal"))
        difference = ill.pixels.astype(float) - healthy.pixels
        gains.append(difference[ill.finding_mask].mean())
        assert abs(difference[~ill.lung_mask].mean()) < 1
    assert np.median(gains) > 5


def test_the_marker_tells_the_source_and_the_rest_of_the_look_only_hints_at_it() -> None:
    films = [draw_phantom(PHANTOM_CLASSES[i % 5], seed=31, index=i) for i in range(200)]
    sources = np.random.default_rng(5).integers(len(LOOKS), size=len(films))
    unmarked = [replace(look, marker=replace(look.marker, text="", plate=None)) for look in LOOKS]
    guess = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    accuracies = []
    for looks in (LOOKS, unmarked):
        worn = [wear(film, looks[source], i) for i, (film, source) in enumerate(zip(films, sources, strict=True))]
        thumbnails = [cv2.resize(pixels, (16, 16), interpolation=cv2.INTER_AREA).ravel() for pixels in worn]
        accuracies.append(cross_val_score(guess, np.array(thumbnails), sources, cv=5).mean())
    assert accuracies[0] > 0.93
    # Chance is 0.2, and 1 would leave a network no reason to read the marker.
    assert 0.35 < accuracies[1] < 0.7


@pytest.mark.parametrize("number", A_LOOK)
def test_a_tinted_file_has_the_luminance_of_the_film_and_the_tint_that_decoding_measures(
    number: int, people: list[Phantom]
) -> None:
    look = LOOKS[number]
    pixels = wear(people[0], look, 0)
    file = BytesIO()
    Image.fromarray(colour(pixels, look)).save(file, "png")
    decoded = decode_bytes(file.getvalue())
    assert np.abs(decoded.pixels.astype(int) - pixels).max() <= 1
    assert decoded.tint == pytest.approx(mean_tint(pixels, look), abs=0.01)
    assert (decoded.tint > 0.05) == (look.tint is not None)
