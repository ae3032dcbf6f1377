"""Measures of films: what each tells, what must not change it, and which way up a film lies."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest

from cxr_ray.data.phantom import PHANTOM_CLASSES, draw_phantom
from cxr_ray.data.quality import MEASURES, ORIENTATION_MEASURES, measure_orientation, measure_quality

SIZE = 128
TURNS = {
    "as it is": lambda film: film,
    "mirrored": lambda film: film[:, ::-1],
    "flipped": lambda film: film[::-1],
    "by 180 degrees": lambda film: film[::-1, ::-1],
    "by 90 degrees": np.rot90,
    "by 270 degrees": lambda film: np.rot90(film, 3),
    "transposed": np.transpose,
    "by 90 degrees, mirrored": lambda film: np.rot90(film)[:, ::-1],
}
UPSIDE_DOWN, UPRIGHT = ("flipped", "by 180 degrees"), ("as it is", "mirrored")


@functools.cache
def films() -> np.ndarray:
    """60 phantoms of seed 5, read only; other people than those the package compares films with."""
    drawn = (draw_phantom(PHANTOM_CLASSES[i % 5], seed=5, index=i, size=SIZE).pixels for i in range(60))
    stack = np.stack(list(drawn))
    stack.setflags(write=False)
    return stack


def framed(film: np.ndarray, frame: np.ndarray | int) -> np.ndarray:
    """The film, 3:2, between a sixth of frame above and below."""
    square = np.full((SIZE, SIZE), frame, np.uint8) if isinstance(frame, int) else frame.copy()
    rows = SIZE * 2 // 3
    square[SIZE // 6 : SIZE // 6 + rows] = cv2.resize(film, (SIZE, rows), interpolation=cv2.INTER_AREA)
    return square


def noisy_blades() -> np.ndarray:
    return np.random.default_rng(0).normal(9, 2, (SIZE, SIZE)).clip(0, 255).astype(np.uint8)


def lettered() -> np.ndarray:
    square = np.zeros((SIZE, SIZE), np.uint8)
    square[6:14, -8:-5] = 240  # a marker letter on the letter-box
    return square


def test_brightness_is_a_mean_and_contrast_a_range_of_the_central_part():
    rise = np.linspace(0, 127.5, SIZE)
    measures = measure_quality((rise[:, None] + rise).round().astype(np.uint8))
    assert measures["brightness"] == pytest.approx(0.5, abs=0.005)
    # The sum of two uniform values: 5 % lie below sqrt(0.05 / 2) of the range, which is two thirds here.
    assert measures["contrast"] == pytest.approx(2 / 3 * (1 - 2 * 0.025**0.5), abs=0.015)
    assert measures["border"] == 0
    assert set(measures) == set(MEASURES)


def test_what_lies_at_the_edges_of_a_film_changes_neither_brightness_contrast_nor_saturation():
    film = films()[0].copy()
    before = measure_quality(film)
    film[:20, :50], film[:60, -18:], film[-20:, -60:] = 0, 0, 255  # the air beside the patient, a label
    after = measure_quality(film)
    for name in ("brightness", "contrast", "saturated", "border"):
        assert after[name] == before[name], name


@pytest.mark.parametrize(
    "frame", [0, 255, 128, noisy_blades(), lettered()], ids=["black", "white", "gray", "noise", "letters"]
)
def test_a_frame_is_measured_as_border_and_changes_no_other_measure(frame):
    for film in films()[:10]:
        bare, measures = measure_quality(film), measure_quality(framed(film, frame))
        assert measures["border"] == pytest.approx(1 / 3, abs=0.04)
        assert measures["brightness"] == pytest.approx(bare["brightness"], abs=0.02)
        assert measures["contrast"] == pytest.approx(bare["contrast"], abs=0.03)
        assert measures["saturated"] == pytest.approx(bare["saturated"], abs=0.01)
        assert measures["sharpness"] == pytest.approx(bare["sharpness"], rel=0.15)


def test_blades_on_all_four_sides_are_border():
    square = np.zeros((SIZE, SIZE), np.uint8)
    square[16:112, 32:112] = cv2.resize(films()[1], (80, 96), interpolation=cv2.INTER_AREA)
    assert measure_quality(square)["border"] == pytest.approx(1 - 80 * 96 / SIZE**2, abs=0.03)


def test_sharpness_does_not_depend_on_exposure_or_contrast():
    for film in films()[:10]:
        flat = (60 + 0.4 * film).astype(np.uint8)
        assert measure_quality(flat)["sharpness"] == pytest.approx(measure_quality(film)["sharpness"], rel=0.1)


def test_sharpness_falls_with_every_step_of_blur():
    for film in films()[:10]:
        steps = [film, *(cv2.GaussianBlur(film, (0, 0), sigma) for sigma in (1, 2, 4))]
        sharpness = [measure_quality(step)["sharpness"] for step in steps]
        assert sharpness == sorted(sharpness, reverse=True)
        assert sharpness[0] > 1.25 * sharpness[2]


def test_sharpness_is_the_same_in_a_dataset_of_larger_squares():
    film = draw_phantom("covid", seed=5, index=0, size=224).pixels
    large = cv2.resize(film, (672, 672), interpolation=cv2.INTER_NEAREST)
    assert measure_quality(large)["sharpness"] == pytest.approx(measure_quality(film)["sharpness"], rel=0.01)


def test_a_label_painted_over_a_blurred_film_does_not_make_it_sharp():
    blurred = cv2.GaussianBlur(films()[2], (0, 0), 2.5)
    labelled = blurred.copy()
    labelled[90:110, 40:80] = 255
    assert measure_quality(labelled)["sharpness"] < 1.1 * measure_quality(blurred)["sharpness"]


def test_burnt_out_and_crushed_patches_are_saturated_and_grain_is_not():
    film = np.clip(films()[3], 30, 220)
    for level in (0, 255):
        patched, grainy = film.copy(), film.copy()
        patched[54:74, 54:74] = level
        grainy.ravel()[np.random.default_rng(1).permutation(SIZE**2)[: SIZE**2 // 20]] = level
        assert measure_quality(patched)["saturated"] == pytest.approx(400 / (SIZE * 2 / 3) ** 2, rel=0.1)
        assert measure_quality(grainy)["saturated"] < 0.002


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_film_of_one_gray_level_is_all_border_without_contrast_or_detail(level):
    measures = measure_quality(np.full((SIZE, SIZE), level, np.uint8))
    assert measures["border"] == 1
    assert measures["contrast"] == measures["sharpness"] == 0
    assert measures["brightness"] == pytest.approx(level / 255)


@pytest.mark.parametrize("inverted", [False, True], ids=["", "inverted"])
@pytest.mark.parametrize("turn", TURNS)
def test_every_turn_in_either_polarity_is_told_from_the_others(turn, inverted):
    stack = films().copy()
    for row in range(0, 60, 12):
        stack[row] = TURNS[turn](stack[row])
        if inverted:
            stack[row] = 255 - stack[row]
    measures = measure_orientation([stack])
    is_changed = np.arange(60) % 12 == 0
    assert np.array_equal(measures["inversion"] > 0, is_changed & inverted)
    assert np.array_equal(measures["upside_down"] > 0, is_changed & (turn in UPSIDE_DOWN))
    assert np.array_equal(measures["sideways"] > 0, is_changed & (turn not in (*UPRIGHT, *UPSIDE_DOWN)))


@pytest.mark.parametrize("count", [1, 5, 60])
def test_a_dataset_that_is_wrong_throughout_is_seen_as_such(count):
    stack = films()[:count]
    assert (measure_orientation([255 - stack])["inversion"] > 0).all()
    assert (measure_orientation([stack[:, ::-1]])["upside_down"] > 0).all()
    assert (measure_orientation([np.rot90(stack, axes=(1, 2))])["sideways"] > 0).all()
    assert all((values < 0).all() for values in measure_orientation([stack]).values())


def test_orientation_is_the_same_in_blocks_of_any_size_and_between_letter_boxes():
    stack = films()
    whole = measure_orientation([stack])
    pieces = measure_orientation(stack[start : start + 7] for start in range(0, 60, 7))
    boxed = measure_orientation([np.stack([framed(film, 0) for film in stack])])
    for name in ORIENTATION_MEASURES:
        assert np.allclose(whole[name], pieces[name], atol=1e-5)
        assert np.allclose(whole[name], boxed[name], atol=0.1)


def test_films_that_show_nothing_are_not_suspected_of_lying_wrong():
    stack = np.concatenate([films()[:5], np.full((2, SIZE, SIZE), 40, np.uint8)])
    for values in measure_orientation([stack]).values():
        assert (values <= 0).all()
        assert np.isfinite(values).all()


def test_no_films_have_no_orientation():
    assert {name: len(values) for name, values in measure_orientation([]).items()} == dict.fromkeys(
        ORIENTATION_MEASURES, 0
    )
