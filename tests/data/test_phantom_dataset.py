"""Phantoms from several hospitals: the same people, and as much of the disease told by the hospital as was asked."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, spearmanr
from scipy.stats.contingency import association
from typer.testing import CliRunner

from cxr_ray.cli import app
from cxr_ray.data.decode import decode_bytes
from cxr_ray.data.phantom import PHANTOM_CLASSES, draw_phantom
from cxr_ray.data.phantom_dataset import make_phantoms, write_phantom_films
from cxr_ray.data.phantom_sources import choose_source
from cxr_ray.data.quality import ORIENTATION_MEASURES
from cxr_ray.data.quality_flags import FLAGS
from cxr_ray.data.resize import fit_square
from cxr_ray.data.shards import PixelStore
from cxr_ray.data.splits import RATIOS
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.errors import ConfigError

IMAGES = 150
SOURCES = 3


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Dataset]:
    """The same people from three hospitals, by confounding."""
    folder = tmp_path_factory.mktemp("twins")
    return {
        confounding: make_phantoms(
            folder / str(confounding), images=IMAGES, size=64, sources=SOURCES, confounding=confounding, quiet=True
        )
        for confounding in (0.0, 1.0)
    }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, which no exposure changes."""
    result: Any = spearmanr(one, other)
    return float(result.statistic)


def masks_of(dataset: Dataset) -> tuple[PixelStore, PixelStore]:
    """The masks of the findings and of the lungs, which every dataset of phantoms has."""
    assert dataset.masks is not None
    assert dataset.lung_masks is not None
    return dataset.masks, dataset.lung_masks


def table(confounding: float, sources: int, films: int) -> np.ndarray:
    """How many films of each class (row) come from each source (column)."""
    counts = np.zeros((len(PHANTOM_CLASSES), sources), int)
    for i in range(films):
        label = i % len(PHANTOM_CLASSES)
        name = PHANTOM_CLASSES[label]
        counts[label, choose_source(name, seed=1, index=i, sources=sources, confounding=confounding)] += 1
    return counts


@pytest.mark.parametrize("sources", [2, 3, 5])
def test_without_confounding_the_source_is_independent_of_the_class(sources: int) -> None:
    counts = table(0, sources, 5000)
    independence: Any = chi2_contingency(counts)
    assert independence.pvalue > 0.01
    assert association(counts, method="cramer") < 0.05


@pytest.mark.parametrize("sources", [2, 3, 5])
@pytest.mark.parametrize("confounding", [0.3, 0.6])
def test_a_class_comes_from_its_own_source_with_the_probability_documented(sources: int, confounding: float) -> None:
    counts = table(confounding, sources, 5000)
    share = counts / counts.sum(axis=1, keepdims=True)
    expected = np.full(share.shape, (1 - confounding) / sources)
    expected[np.arange(5), np.arange(5) % sources] += confounding
    assert np.abs(share - expected).max() < 4 * (0.25 / 1000) ** 0.5


@pytest.mark.parametrize("sources", [2, 3, 5])
def test_with_full_confounding_every_class_has_one_source_and_the_classes_are_shared_out_evenly(sources: int) -> None:
    counts = table(1, sources, 100)
    assert ((counts > 0).sum(axis=1) == 1).all()
    classes = (counts > 0).sum(axis=0)
    assert classes.min() >= 1
    assert np.ptp(classes) <= 1


def test_the_association_of_source_and_class_rises_with_confounding() -> None:
    strength = [association(table(c, SOURCES, 600), method="cramer") for c in (0, 0.3, 0.6, 1)]
    assert np.diff(strength).min() > 0.15
    assert strength[0] < 0.1
    assert strength[-1] == pytest.approx(1)


def test_where_confounding_rises_no_film_leaves_the_source_of_its_class() -> None:
    for i in range(200):
        label = PHANTOM_CLASSES[i % 5]
        chosen = [choose_source(label, seed=0, index=i, sources=5, confounding=c) for c in (0, 0.2, 0.5, 0.8, 1)]
        first = chosen.index(i % 5)
        assert set(chosen[:first]) <= {chosen[0]}
        assert set(chosen[first:]) == {i % 5}


def test_twins_show_the_same_people_with_the_same_findings(twins: dict[float, Dataset]) -> None:
    free, confounded = twins[0.0], twins[1.0]
    for name in ("label", "patient_id", "sex", "age", "view", "path"):
        assert free.column(name) == confounded.column(name)
    same_source = np.array(free.column("source")) == np.array(confounded.column("source"))
    assert 0.2 < same_source.mean() < 0.5
    for one_mask, other_mask in zip(masks_of(free), masks_of(confounded), strict=True):
        assert np.array_equal(one_mask.block(0, IMAGES), other_mask.block(0, IMAGES))
    for row in range(IMAGES):
        lungs = masks_of(free)[1][row]
        one, other = free.pixels[row], confounded.pixels[row]
        assert np.array_equal(one, other) == same_source[row]
        assert rank_correlation(one[lungs > 0], other[lungs > 0]) > 0.85


def test_lung_masks_show_two_lungs_of_plausible_size_that_hold_the_findings(twins: dict[float, Dataset]) -> None:
    for dataset in twins.values():
        finding_masks, lung_masks = masks_of(dataset)
        assert len(finding_masks) == len(lung_masks) == IMAGES
        for row in range(IMAGES):
            lungs, finding = lung_masks[row], finding_masks[row]
            assert lungs.dtype == np.uint8
            assert set(np.unique(lungs)) == {0, 255}
            assert 0.17 < (lungs > 0).mean() < 0.45
            _, _, stats, _ = cv2.connectedComponentsWithStats(lungs)
            areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
            assert areas[1] > 0.5 * areas[0]
            assert areas[:2].sum() > 0.98 * areas.sum()
            if finding.any():
                assert (lungs[finding > 0] > 0).mean() > 0.95


def test_the_manifest_carries_what_the_files_of_a_source_would_show(tmp_path: Path) -> None:
    dataset = make_phantoms(tmp_path / "five", images=60, size=64, sources=5, quiet=True)
    names = [f"phantom-{letter}" for letter in "abcde"]
    assert list(dataset.info.sources) == names
    films = write_phantom_films(tmp_path / "films", images=60, size=64, sources=5, quiet=True)
    with (films / "metadata.csv").open() as stream:
        listed = {row["path"].removesuffix(".png"): row for row in csv.DictReader(stream)}
    modes = set()
    for i, row in enumerate(dataset.manifest.to_pylist()):
        assert listed[row["path"]]["source"] == row["source"]
        content = (films / f"{row['path']}.png").read_bytes()
        image = decode_bytes(content)
        assert image.pixels.shape == (row["height"], row["width"])
        assert image.tint == pytest.approx(row["tint"], abs=0.03)
        square = fit_square(image.pixels, 64, "squash")
        assert np.corrcoef(square.ravel(), dataset.pixels[i].ravel())[0, 1] > 0.98
        with Image.open(films / f"{row['path']}.png") as file:
            modes.add((row["source"], file.mode))
    assert {mode for _, mode in modes} == {"L", "RGB"}
    assert len(modes) == len(names)
    assert len({(row["width"], row["height"]) for row in dataset.manifest.to_pylist()}) == len(names)


def test_the_films_of_every_source_are_split_in_the_same_shares(twins: dict[float, Dataset]) -> None:
    sources, splits = (np.array(twins[0.0].column(name)) for name in ("source", "split"))
    for source in twins[0.0].info.sources:
        for split, ratio in RATIOS.items():
            assert (splits[sources == source] == split).mean() == pytest.approx(ratio, abs=0.04)


def test_the_sources_of_neighbouring_films_are_independent() -> None:
    chosen = [choose_source("covid", seed=4, index=i, sources=2, confounding=0) for i in range(2000)]
    assert np.mean(np.array(chosen[1:]) == chosen[:-1]) == pytest.approx(0.5, abs=0.05)


def test_the_same_order_gives_the_same_dataset_whoever_draws_it(twins: dict[float, Dataset], tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        again = make_phantoms(
            tmp_path / "again", images=IMAGES, size=64, sources=SOURCES, confounding=1, map=pool.map, quiet=True
        )
    for kind in ("fingerprint", "shards", "mask_shards", "lung_mask_shards"):
        assert getattr(again.info, kind) == getattr(twins[1.0].info, kind)


def test_one_source_is_plain_phantoms(phantoms: Dataset) -> None:
    assert phantoms.info.sources == {"phantom": 60}
    finding_masks, lung_masks = masks_of(phantoms)
    for i in (0, 1, 2, 3, 4, 59):
        film = draw_phantom(PHANTOM_CLASSES[i % 5], seed=0, index=i, size=64)
        assert np.array_equal(phantoms.pixels[i], film.pixels)
        assert np.array_equal(finding_masks[i] > 0, film.finding_mask)
        assert np.array_equal(lung_masks[i] > 0, film.lung_mask)


def test_phantoms_are_measured_and_flagged_as_films_are(phantoms: Dataset, twins: dict[float, Dataset]) -> None:
    assert set(phantoms.info.thresholds) == set(FLAGS)
    assert sum(map(len, phantoms.column("quality_flags"))) <= 2
    for name in ORIENTATION_MEASURES:
        assert max(phantoms.column(name)) < 0  # all of them upright
    films = zip(twins[0.0].column("source"), twins[0.0].column("quality_flags"), strict=True)
    assert {source for source, flags in films if "tinted" in flags} == {"phantom-c"}  # photographs, on a light box


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": 0}, r"--sources: 0 sources are not allowed; 1 to 5 are"),
        ({"sources": 6}, r"--sources: 6 sources are not allowed; 1 to 5 are"),
        ({"sources": 2, "confounding": -0.1}, r"--confounding: confounding -0\.1 is not allowed; 0 to 1 is"),
        ({"sources": 2, "confounding": 1.5}, r"--confounding: confounding 1\.5 is not allowed; 0 to 1 is"),
        ({"sources": 2, "confounding": float("nan")}, r"--confounding: confounding nan is not allowed; 0 to 1 is"),
        ({"confounding": 0.5}, r"confounding 0\.5 needs two sources or more, and there is 1\. Give --sources 2 to 5"),
    ],
)
@pytest.mark.parametrize("write", [make_phantoms, write_phantom_films])
def test_sources_that_cannot_be_had_are_refused_and_nothing_is_written(write, options, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "out", images=40, quiet=True, **options)
    assert not (tmp_path / "out").exists()


def test_the_command_draws_from_the_hospitals_asked_for(tmp_path: Path) -> None:
    options = ["--images", "40", "--size", "64", "--sources", "2", "--confounding", "1", "--quiet"]
    result = CliRunner().invoke(app, ["data", "phantom", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    dataset = open_dataset(tmp_path / "out")
    # Of five classes in turn, the first, third and fifth belong to the first of two hospitals.
    assert dataset.info.sources == {"phantom-a": 24, "phantom-b": 16}
