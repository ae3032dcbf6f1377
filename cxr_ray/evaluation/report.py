"""What an evaluation found: the content of `report.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cxr_ray.bundle import BundleInfo
from cxr_ray.data.store import Dataset
from cxr_ray.errors import DataError
from cxr_ray.evaluation.looks import Look
from cxr_ray.metrics.classification import counts_to_metrics
from cxr_ray.paths import locate

SCHEMA_VERSION = 1
REPORT_FILE, PAGE_FILE = "report.json", "index.html"
CONFUSION_FILE, CURVES_FILE, MISTAKES_FOLDER = "confusion_matrix.png", "learning_curves.png", "mistakes"
CONTENTS = frozenset({REPORT_FILE, PAGE_FILE, CONFUSION_FILE, CURVES_FILE, MISTAKES_FOLDER})


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BundleRef(_Record):
    """Which bundle: its id (sha256 of its checksums), and what it says of itself."""

    id: str
    name: str
    uri: str
    classes: list[str]
    watched_class: str
    experiment_fingerprint: str | None
    trained_on: str | None


class DatasetRef(_Record):
    """Which dataset: its fingerprint covers every pixel and manifest row; and whose films were left out of it."""

    name: str
    fingerprint: str
    uri: str
    exclude_flags: list[str] = []


class Confusion(_Record):
    """Counts by label (row) and prediction (column), and their shares of the row; null without images."""

    classes: list[str]
    counts: list[list[int]]
    row_shares: list[list[float] | None]


class Mistake(_Record):
    """One film whose prediction is not its label.

    Attributes:
        image_id: Of the dataset's manifest.
        path: Of the original file, relative to what was imported.
        label: What the dataset says.
        predicted: What the bundle decides.
        probabilities: Calibrated, by class, summing to 1.
        shown: Whether it was drawn for the page and the pictures.
    """

    image_id: str
    path: str
    label: str
    predicted: str
    probabilities: dict[str, float]
    shown: bool


class Report(_Record):
    """An evaluation of one bundle on one split.

    Attributes:
        schema_version: Of this file.
        kind: Tells this report from other reports.
        created: ISO 8601, UTC.
        bundle: What was evaluated.
        dataset: What it was evaluated on.
        split: ``test`` mostly.
        n: Images evaluated.
        images: Images of each class.
        metrics: By key (``test/macro_f1``, ``test/recall/covid`` ...); null where there are no images.
        confusion: Counts by label and prediction.
        mistakes: All wrong decisions, by class and falling confidence.
        looks: Every look at the dataset's test split so far, this one last.
        warnings: Sentences that every reader should see.
        folder: Where the report lies (not in the file).
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["evaluation"] = "evaluation"
    created: str
    bundle: BundleRef
    dataset: DatasetRef
    split: str
    n: int
    images: dict[str, int]
    metrics: dict[str, float | None]
    confusion: Confusion
    mistakes: list[Mistake]
    looks: list[Look]
    warnings: list[str]
    folder: str = Field(default="", exclude=True)

    @property
    def page(self) -> str:
        """Path or address of the page."""
        return f"{self.folder.rstrip('/')}/{PAGE_FILE}"

    def metric(self, name: str) -> float | None:
        """A metric of the split evaluated, its prefix left out (``recall/covid``)."""
        return self.metrics[f"{self.split}/{name}"]


def load_report(folder: str | Path) -> Report:
    """Read the report that `evaluate` wrote into a folder.

    Raises:
        DataError: There is none, or it was written by another version.
    """
    location = locate(folder)
    file = location.child(REPORT_FILE)
    if not file.exists():
        raise DataError(
            f"holds no {REPORT_FILE}", where=location, next_step="Make one with: cxr-ray evaluate BUNDLE --data DATASET"
        )
    try:
        return Report.model_validate(file.read_json()).model_copy(update={"folder": location.uri})
    except (ValidationError, ValueError) as error:
        raise DataError("is damaged or was written by another version of cxr-ray", where=file) from error


def split_metrics(counts: np.ndarray, classes: Sequence[str], split: str) -> dict[str, float | None]:
    """`counts_to_metrics` under the split's name, NaN (which JSON lacks) as None."""
    metrics = counts_to_metrics(counts, classes)
    return {f"{split}/{name}": None if math.isnan(value) else value for name, value in metrics.items()}


def confusion_of(counts: np.ndarray, classes: Sequence[str]) -> Confusion:
    """Counts (int64, (K, K), row the label) with their row shares."""
    rows: list[list[int]] = counts.tolist()
    shares = [[count / sum(row) for count in row] if sum(row) else None for row in rows]
    return Confusion(classes=list(classes), counts=rows, row_shares=shares)


def warnings_of(bundle: BundleInfo, dataset: Dataset, split: str, images: dict[str, int]) -> list[str]:
    """Sentences for every reader: what the bundle and the dataset warn of, and what this pairing adds."""
    warnings = [*bundle.warnings, *dataset.info.warnings]
    same = trained_on(bundle) == dataset.stored_fingerprint
    if dataset.exclude_flags:
        warnings.append(f"films flagged {', '.join(dataset.exclude_flags)} were left out")
    if same and split != "test":
        warnings.append(f"{_USED_FOR[split]}, so its numbers are better than on new films")
    if not same:
        warnings.append(
            "the bundle was trained on another dataset than this one; films or patients that are in both would make "
            "the numbers better than on new films, and nothing has checked for them"
        )
    absent = [name for name, count in images.items() if not count]
    if absent:
        warnings.append(
            f"there is no film of {', '.join(absent)}: macro averages are over the other "
            f"{len(images) - len(absent)} classes"
        )
    return list(dict.fromkeys(warnings))


def trained_on(bundle: BundleInfo) -> str | None:
    """Fingerprint of the stored dataset a bundle was trained on; None where it does not say."""
    dataset: Any = bundle.provenance.get("dataset")
    fingerprint = dataset.get("stored_fingerprint") if isinstance(dataset, dict) else None
    return None if fingerprint is None else str(fingerprint)


def experiment_fingerprint(bundle: BundleInfo) -> str | None:
    """Fingerprint of the experiment a bundle was trained by; None where it does not say."""
    fingerprint = bundle.provenance.get("experiment_fingerprint")
    return None if fingerprint is None else str(fingerprint)


_USED_FOR = {
    "train": "the network was trained on this split",
    "val": "this split chose the bundle (its epoch, and its trial)",
    "calibration": "the probabilities were calibrated on this split",
}
