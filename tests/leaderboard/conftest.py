"""Real runs to read: the real loop on a hundred generated films, tiny network, 64 px."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_ray.data.importers import import_dataset
from cxr_ray.data.store import Dataset
from cxr_ray.errors import CxrError
from cxr_ray.experiment import load_experiment
from cxr_ray.leaderboard.rows import SPACE_FILE
from cxr_ray.paths import locate
from cxr_ray.training.launch import Silent, run_info, train
from cxr_ray.training.loop import run_loop
from cxr_ray.training.run_folder import RunFolder, Status

CLASSES = ["normal", "covid", "tuberculosis"]
# fp32, so that a bundle can be held to the very logits of training.
SETTINGS = {
    "training.image_size": 64,
    "training.epochs": 4,
    "training.batch_size": 8,
    "training.precision": "fp32",
    "optimization.learning_rate": 0.004,
}
SET_OPTIONS = [f"{key}={value}" for key, value in SETTINGS.items()]
TRIALS: dict[str, dict[str, Any]] = {
    "aaaa0001": {"loss.recall_emphasis": {"covid": 3.0}, "optimization.learning_rate": 0.004},
    "aaaa0002": {"loss.recall_emphasis": {}, "optimization.learning_rate": 0.0001},
    # Far beyond anything that trains: the loss is no number after a step or two.
    "aaaa0003": {"loss.recall_emphasis": {}, "optimization.learning_rate": 1e30},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNGs of three classes, 120 x 100 pixels, with a metadata.csv that gives the splits."""
    return _draw(tmp_path_factory.mktemp("films"), {"train": 24, "val": 10, "calibration": 32, "test": 2})


@pytest.fixture(scope="session")
def dataset(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return import_dataset(films, tmp_path_factory.mktemp("data") / "shapes", size=96, quiet=True)


@pytest.fixture(scope="session")
def scarce_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Too few calibration images to calibrate on."""
    films = _draw(tmp_path_factory.mktemp("few"), {"train": 6, "val": 4, "calibration": 2, "test": 1})
    return import_dataset(films, tmp_path_factory.mktemp("data") / "few", size=64, quiet=True)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def training_run(dataset: Dataset, storage: Path) -> Path:
    train("tiny", dataset, workers=0, set_options=SET_OPTIONS, storage=storage, name="plain", quiet=True)
    return storage / "plain"


@pytest.fixture(scope="session")
def scarce_run(scarce_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    options = [*SET_OPTIONS, "training.epochs=1"]
    train("tiny", scarce_dataset, workers=0, set_options=options, storage=storage, name="scarce", quiet=True)
    return storage / "scarce"


@pytest.fixture(scope="session")
def tuning_run(dataset: Dataset, storage: Path) -> Path:
    """A tuning run's folder with three trials of the real loop, the third of which fails."""
    run, base = storage / "search", load_experiment("tiny", SETTINGS)
    run.mkdir()
    summary = run_info("search", base, dataset, workers=1).dataset
    description = {
        "schema_version": 1,
        "name": "search",
        "space": {
            "name": "search",
            "base": "tiny",
            "metric": "val/macro_f1",
            "trials": 4,
            "parameters": {"loss.recall_emphasis": {}, "optimization.learning_rate": {}},
        },
        "base": base.model_dump(mode="json"),
        "dataset": summary.model_dump(mode="json"),
        "created": "2026-01-01T00:00:00+00:00",
    }
    locate(run / SPACE_FILE).write_json(description)
    # What Tune leaves beside the trials.
    (run / "tuner.pkl").write_bytes(b"not read")
    for trial, parameters in TRIALS.items():
        experiment = load_experiment(base, parameters)
        info = run_info(f"trial_{trial}", experiment, dataset, workers=1, trial=trial, parameters=parameters)
        folder = RunFolder(locate(run / f"trial_{trial}"))
        folder.write_info(info)
        (run / f"trial_{trial}" / "params.json").write_text("{}")
        try:
            run_loop(experiment, dataset, folder, Silent(), torch.device("cpu"))
        except CxrError as error:
            folder.write_status(Status(state="failed", reason=error.problem, epochs=4))
    return run


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """Copies a run, so that a test may damage it; without checkpoints unless asked for."""

    def copy(run: Path, *, checkpoints: bool = False) -> Path:
        ignore = None if checkpoints else shutil.ignore_patterns("checkpoint_*")
        return shutil.copytree(run, tmp_path / run.name, ignore=ignore)

    return copy


def _draw(root: Path, counts: dict[str, int]) -> Path:
    random = np.random.default_rng(7)
    rows = []
    for label in CLASSES:
        for split, count in counts.items():
            for i in range(count):
                name = f"{label}-{split}-{i}.png"
                Image.fromarray(_film(label, random)).save(root / name)
                rows.append({"path": name, "label": label, "split": split, "patient_id": f"{label}{split}{i // 2}"})
    with (root / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def _film(label: str, random: np.random.Generator) -> np.ndarray:
    """uint8, (120, 100): noise on a gradient, and a bright square low (covid) or high (tuberculosis)."""
    film = np.linspace(60, 120, 120)[:, None] + random.normal(0, 25, (120, 100))
    top = {"normal": None, "covid": 70, "tuberculosis": 15}[label]
    if top is not None and random.random() < 0.9:
        top, left = top + random.integers(-10, 10), random.integers(5, 60)
        film[top : top + 30, left : left + 30] += 70
    return film.clip(0, 255).astype(np.uint8)
