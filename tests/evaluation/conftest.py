"""A small real dataset, imported from PNGs drawn here, and a small real bundle that has learnt a little of it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_ray.bundle import Bundle, BundleInfo, Preprocessing, load_bundle, write_bundle
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.loader import to_input
from cxr_ray.data.resize import fit_square
from cxr_ray.data.store import Dataset
from cxr_ray.metrics.calibration import Calibration
from cxr_ray.model.dual_backbone import DualBackbone, NetworkConfig, build_network

CLASSES = ["normal", "covid", "lung_opacity"]
STORED, SEEN = 96, 64
_FILMS = {"train": 8, "val": 3, "calibration": 2, "test": 12}


def draw_films(folder: Path, classes: Sequence[str] = CLASSES, seed: int = 0) -> Path:
    """Noisy films with a patch whose place hints at the class, and a `metadata.csv` that gives the splits."""
    rng = np.random.default_rng(seed)
    rows = []
    for k, name in enumerate(classes):
        for split, count in _FILMS.items():
            for number in range(count):
                pixels = rng.normal(110, 45, (110, 90))
                pixels[20 + 25 * k : 45 + 25 * k, 25:65] += 18
                file = folder / f"{name}_{split}_{number}.png"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
                rows.append({"path": file.name, "label": name, "split": split})
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def history(epochs: int, watched: str = "covid") -> list[dict[str, object]]:
    """Rows of a training run whose fourth epoch was the best."""
    return [
        {
            "epoch": epoch,
            "train/loss": 1.6 - 0.2 * epoch,
            "val/loss": 1.6 - 0.15 * epoch,
            "val/macro_f1": 0.2 + 0.1 * min(epoch, 3),
            f"val/recall/{watched}": 0.3 + 0.1 * epoch,
            "best": epoch <= 3,
        }
        for epoch in range(epochs)
    ]


def make_bundle(
    folder: Path,
    network: DualBackbone,
    classes: Sequence[str] = CLASSES,
    *,
    name: str = "small",
    dataset: Dataset | None = None,
    stored: int = STORED,
    epochs: int = 6,
) -> Bundle:
    """Write a bundle whose calibration and thresholds both matter to its decisions, and load it."""
    count = len(classes)
    bias = np.linspace(-0.2, 0.2, count)
    trained_on = {"name": "films", "stored_fingerprint": dataset.info.fingerprint if dataset else "elsewhere"}
    info = BundleInfo(
        name=name,
        created="2026-11-23T20:00:00+00:00",
        classes=list(classes),
        watched_class=classes[1],
        preprocessing=Preprocessing(dataset_size=stored, fit="squash", network_size=SEEN),
        network=NetworkConfig(backbones="tiny"),
        calibration=Calibration(temperature=1.5, bias=bias.tolist(), images=10),
        thresholds=np.linspace(1, 0.8, count).tolist(),
        validation={},
        provenance={"experiment_fingerprint": "0123456789abcdef", "dataset": trained_on},
    )
    write_bundle(folder, info, network.state_dict(), "# card\n", history(epochs, classes[1]))
    return load_bundle(folder)


def untrained(classes: int) -> DualBackbone:
    torch.manual_seed(0)
    return build_network(NetworkConfig(backbones="tiny"), classes).eval()


def fit_last_layer(network: DualBackbone, dataset: Dataset) -> None:
    """Ridge regression of the labels on the pooled features: some films right, some wrong, in a second."""
    rows = dataset.rows("train")
    films = np.stack([fit_square(dataset.pixels[int(row)], SEEN, "squash") for row in rows])
    with torch.no_grad():
        pooled = network.pool(network.features(to_input(torch.from_numpy(films)[:, None])))
        mean, spread = pooled.mean(dim=0), pooled.std(dim=0) + 1e-6
        scaled = (pooled - mean) / spread
        targets = torch.nn.functional.one_hot(torch.from_numpy(dataset.labels[rows])).float() * 4 - 2
        gram = scaled.T @ scaled + 10 * torch.eye(scaled.shape[1])
        weights = torch.linalg.solve(gram, scaled.T @ (targets - targets.mean(dim=0)))
        network.classifier.weight.copy_((weights / spread[:, None]).T)
        network.classifier.bias.copy_(targets.mean(dim=0) - (mean / spread) @ weights)


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNGs."""
    return draw_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="session")
def shared_dataset(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The films, imported; for tests that do not count looks."""
    return import_dataset(films, tmp_path_factory.mktemp("data") / "films", size=STORED, quiet=True)


@pytest.fixture
def dataset(films: Path, tmp_path: Path) -> Dataset:
    """The films, imported anew: nobody has looked at its test split."""
    return import_dataset(films, tmp_path / "films", size=STORED, quiet=True)


@pytest.fixture(scope="session")
def bundle(shared_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that gets some of the test films wrong."""
    network = untrained(len(CLASSES))
    fit_last_layer(network, shared_dataset)
    return make_bundle(tmp_path_factory.mktemp("bundles") / "small", network, dataset=shared_dataset)
