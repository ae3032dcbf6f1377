"""Near duplicates: copies planted among films are found, and films that merely look alike are not."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cxr_ray.data.decode import decode_file
from cxr_ray.data.duplicate_confirmation import confirm
from cxr_ray.data.duplicates import duplicate_groups, find_near_duplicates
from cxr_ray.data.phantom import PHANTOM_CLASSES, draw_phantom
from cxr_ray.data.resize import Fit, fit_square
from cxr_ray.data.shards import PixelStore, write_shard

SIZE = 160
Altered = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def reencoded(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(film).save(file, "JPEG", quality=int(random.integers(30, 96)))
    return np.asarray(Image.open(file))


def resized(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    edge = int(random.choice([128, 160, 256, 400, 640]))
    scale = edge / max(film.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(film, (round(film.shape[1] * scale), round(film.shape[0] * scale)), interpolation=method)


def rewindowed(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    values = (film / 255) ** random.uniform(0.6, 1.6)
    values = (values - 0.5) * random.uniform(0.7, 1.3) + 0.5 + random.uniform(-0.12, 0.12)
    return np.round(255 * values.clip(0, 1)).astype(np.uint8)


def cropped(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = film.shape
    top, bottom = (random.uniform(0, 0.05, 2) * height).round().astype(int)
    left, right = (random.uniform(0, 0.05, 2) * width).round().astype(int)
    return film[top : height - bottom, left : width - right]


def cropped_to_the_limit(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = film.shape
    top, bottom = (random.choice([0, 0.05], 2) * height).round().astype(int)
    left, right = (random.choice([0, 0.05], 2) * width).round().astype(int)
    return film[top : height - bottom, left : width - right]


def all_of_these(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    for step in (cropped, rewindowed, resized, reencoded):
        film = step(film, random)
    return film


KINDS: dict[str, Altered] = {
    function.__name__: function
    for function in (reencoded, resized, rewindowed, cropped, cropped_to_the_limit, all_of_these)
}


@pytest.fixture
def store(tmp_path: Path) -> Callable[[Iterable[np.ndarray]], PixelStore]:
    """Writes films of one size as a pixel store of two shards."""

    def write(films: Iterable[np.ndarray]) -> PixelStore:
        pixels = np.stack(list(films))
        parts = [part for part in (pixels[:3], pixels[3:]) if len(part)]
        return PixelStore(tmp_path, [write_shard(tmp_path, f"{i}.npy", part) for i, part in enumerate(parts)])

    return write


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    """Films of 240 phantoms, all different."""
    return [draw_phantom(PHANTOM_CLASSES[i % 5], seed=3, index=i, size=SIZE).pixels for i in range(240)]


def plant(films: list[np.ndarray], each: int, fit: Fit) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Films with `each` copies of every kind among them, shuffled: squares, which film each shows, which kind it is."""
    random = np.random.default_rng(0)
    picked = random.permutation(len(films))[: each * len(KINDS)]
    kinds = [name for name in KINDS for _ in range(each)]
    copies = [KINDS[kind](films[i], random) for i, kind in zip(picked, kinds, strict=True)]
    squares = [fit_square(film, SIZE, fit) for film in [*films, *copies]]
    order = random.permutation(len(squares))
    shown = np.concatenate([np.arange(len(films)), picked])[order]
    return [squares[i] for i in order], shown, np.array(["original"] * len(films) + kinds)[order]


def recalls(groups: np.ndarray, shown: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """By kind: the share of copies in the group of their original."""
    originals = kinds == "original"
    group_of = dict(zip(shown[originals].tolist(), groups[originals].tolist(), strict=True))
    found = np.array([group_of[film] for film in shown.tolist()]) == groups
    return {kind: float(found[kinds == kind].mean()) for kind in KINDS}


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_copies_of_every_kind_are_found_among_phantoms_and_nothing_else(store, people, fit):
    squares, shown, kinds = plant(people, each=40, fit=fit)
    pairs = find_near_duplicates(store(squares))
    assert [pair for pair in pairs if shown[pair.first] != shown[pair.second]] == []
    found = recalls(duplicate_groups(len(squares), pairs), shown, kinds)
    assert min(found.values()) >= 0.95, found


@pytest.mark.real_data
@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_copies_of_every_kind_are_found_among_real_films(store, real_films, fit):
    films = [decode_file(path).pixels for path in sorted((real_films / "images").rglob("*.jpg"))]
    squares, shown, kinds = plant(films, each=300, fit=fit)
    pairs = find_near_duplicates(store(squares))
    right = [shown[pair.first] == shown[pair.second] for pair in pairs]
    groups = duplicate_groups(len(squares), pairs)
    found = recalls(groups, shown, kinds)
    print(fit, {kind: round(share, 4) for kind, share in found.items()}, f"precision {np.mean(right):.4f}")  # noqa: T201
    assert min(found.values()) >= 0.96, found
    assert np.mean(right) >= 0.99
    assert np.bincount(groups).max() <= 8


@pytest.mark.real_data
def test_real_films_of_one_framing_are_not_taken_for_each_other(store, real_films):
    """Two pairs are copies, as a look at them shows; a difference hash proposes 2,242."""
    paths = sorted((real_films / "images").rglob("*.jpg"))
    pairs = find_near_duplicates(store(fit_square(decode_file(path).pixels, SIZE, "squash") for path in paths))
    names = {frozenset((paths[pair.first].stem, paths[pair.second].stem)) for pair in pairs}
    assert frozenset(("cxnet_468_b911e6", "cxnet_508_dafe17")) in names
    assert len(pairs) <= 4


def test_pairs_come_in_order_and_are_the_same_from_any_number_of_processes(store, people):
    squares, _, _ = plant(people[:100], each=10, fit="squash")
    films = store(squares)
    pairs = find_near_duplicates(films)
    assert pairs == sorted(pairs)
    assert all(pair.first < pair.second and 0.93 <= pair.correlation <= 1 for pair in pairs)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert find_near_duplicates(films, map=pool.map) == pairs


def test_two_thousand_identical_films_are_chained_rather_than_paired(store, people):
    pairs = find_near_duplicates(store([people[0]] * 2000))
    assert len(pairs) == 1999
    assert not duplicate_groups(2000, pairs).any()


def test_a_crowd_of_copies_costs_a_few_comparisons_each(store, people):
    random = np.random.default_rng(0)
    copies = [fit_square(all_of_these(people[0], random), SIZE, "squash") for _ in range(300)]
    compared = 0

    def counting(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        nonlocal compared
        for item in items:
            compared += item.shape[1] if function is confirm else 0
            yield function(item)

    pairs = find_near_duplicates(store([*people, *copies]), map=counting)
    groups = duplicate_groups(540, pairs)
    members = int((groups == 0).sum())
    assert members >= 295
    assert len(pairs) == members - 1
    assert compared < 3 * 540


def test_letter_boxes_do_not_hide_a_copy(store, people):
    boxed = [cv2.copyMakeBorder(film, 0, 0, 30, 30, cv2.BORDER_CONSTANT, value=0) for film in people[:10]]
    pairs = find_near_duplicates(store([*people[:100], *(fit_square(film, SIZE, "pad") for film in boxed)]))
    assert [(pair.first, pair.second) for pair in pairs] == [(i, 100 + i) for i in range(10)]


def test_letter_boxes_do_not_make_different_films_alike(store, people):
    boxed = [cv2.copyMakeBorder(film, 60, 60, 0, 0, cv2.BORDER_CONSTANT, value=0) for film in people[:100]]
    assert find_near_duplicates(store(fit_square(film, SIZE, "squash") for film in boxed)) == []


def test_blank_films_are_duplicates_of_none(store, people):
    random = np.random.default_rng(0)
    nothing = [np.full((SIZE, SIZE), gray, np.uint8) for gray in (0, 0, 128, 128, 255)]
    noise = [random.normal(100, 4, (SIZE, SIZE)).astype(np.uint8) for _ in range(3)]
    assert find_near_duplicates(store([*nothing, *noise])) == []
    assert find_near_duplicates(store([*people[:80], *nothing, *noise])) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_handful_of_films_is_compared(tmp_path, store, people, count):
    random = np.random.default_rng(0)
    films = [people[0], people[1], rewindowed(people[0], random)][:count]
    pairs = find_near_duplicates(store(films) if films else PixelStore(tmp_path, []))
    assert [(pair.first, pair.second) for pair in pairs] == ([(0, 2)] if count == 3 else [])


def test_the_smallest_films_are_compared_too(store, people):
    random = np.random.default_rng(0)
    small = [fit_square(film, 64, "squash") for film in people[:30]]
    copies = [fit_square(reencoded(film, random), 64, "squash") for film in people[:10]]
    pairs = find_near_duplicates(store([*small, *copies]))
    assert [(pair.first, pair.second) for pair in pairs] == [(i, 30 + i) for i in range(10)]


def test_groups_follow_chains_and_go_by_their_first_film():
    assert duplicate_groups(7, [(4, 6), (1, 4), (2, 3)]).tolist() == [0, 1, 2, 2, 1, 5, 1]
    assert duplicate_groups(0, []).tolist() == []
