"""Augmentation: what albumentations would do with the same parameters, reproducibly, on one dial a family."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from cxr_ray.data.augment import Augmentation, AugmentConfig, affine_matrix
from cxr_ray.data.phantom import draw_phantom

FILM = draw_phantom("covid", seed=0, index=0, size=96).pixels
OFF = AugmentConfig(exposure=0, geometry=0)


def augmented(config: AugmentConfig, seed: int, film: np.ndarray = FILM) -> np.ndarray:
    return Augmentation(config)(film, np.random.default_rng(seed))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:albumentations")
@pytest.mark.parametrize("dials", [(0.5, -1, 0.8, 6, -3), (-1, 1, -1, -9, 11), (0, 0, 0.2, 0, 0)])
def test_geometry_moves_a_film_as_albumentations_does(dials):
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    scale_x, scale_y, rotation, *pixels = dials  # albumentations rounds shifts to whole pixels
    shift_x, shift_y = (shift / 11.52 for shift in pixels)
    theirs = A.Affine(
        scale={"x": (1 + 0.2 * scale_x,) * 2, "y": (1 + 0.2 * scale_y,) * 2},
        rotate=(15 * rotation,) * 2,
        translate_percent={"x": (0.12 * shift_x,) * 2, "y": (0.12 * shift_y,) * 2},
        border_mode=cv2.BORDER_CONSTANT,
        p=1,
    )(image=FILM[:, :, None])["image"][:, :, 0]
    ours = cv2.warpAffine(
        FILM, affine_matrix(96, (scale_x, scale_y, rotation, shift_x, shift_y), flip=False), FILM.shape
    )
    assert np.abs(ours.astype(int) - theirs).mean() < 0.5
    assert np.abs(FILM.astype(int) - theirs).mean() > 3


@pytest.mark.filterwarnings("ignore:.*:UserWarning:albumentations")
@pytest.mark.parametrize("seed", range(4))
def test_exposure_changes_a_film_as_albumentations_does(seed):
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    contrast, brightness = 0.4 * np.random.default_rng(seed).uniform(-1, 1, 8)[6:]
    theirs = A.RandomBrightnessContrast((brightness,) * 2, (contrast,) * 2, p=1)(image=FILM[:, :, None])["image"]
    np.testing.assert_array_equal(augmented(AugmentConfig(exposure=1, geometry=0), seed), theirs[:, :, 0])


def test_a_generator_in_the_same_state_gives_the_same_film():
    config = AugmentConfig(exposure=1, geometry=1, horizontal_flip=True)
    np.testing.assert_array_equal(augmented(config, 5), augmented(config, 5))
    assert not np.array_equal(augmented(config, 5), augmented(config, 6))


def test_dials_at_zero_leave_films_alone():
    np.testing.assert_array_equal(augmented(OFF, 1), FILM)


def test_half_of_the_films_are_mirrored_where_that_is_asked_for():
    mirrored = [
        np.array_equal(augmented(OFF.model_copy(update={"horizontal_flip": True}), seed), FILM[:, ::-1])
        for seed in range(200)
    ]
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("family", ["exposure", "geometry"])
def test_a_dial_turned_up_changes_films_more(family):
    changes = [
        np.mean(
            [np.abs(augmented(OFF.model_copy(update={family: dial}), seed).astype(int) - FILM) for seed in range(40)]
        )
        for dial in (0.1, 0.3, 0.6, 1.0)
    ]
    assert changes == sorted(changes)
    assert changes[-1] > 3 * changes[0]


def test_the_dial_of_one_family_leaves_what_another_draws_alone():
    white = np.full((64, 64), 100, np.uint8)
    exposed = augmented(AugmentConfig(exposure=1, geometry=0), 3, white)
    both = augmented(AugmentConfig(exposure=1, geometry=0.1), 3, white)
    assert exposed[32, 32] == both[32, 32] != 100
