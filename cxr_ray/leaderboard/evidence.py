"""The evidence behind a bundle: what the best epoch left, checked before anybody relies on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cxr_ray.data.splits import group_ids
from cxr_ray.errors import RunError
from cxr_ray.metrics.calibration import Calibration, fit_calibration, identity_calibration, stratified_half
from cxr_ray.metrics.classification import classification_metrics, confusion_matrix
from cxr_ray.training.run_folder import PREDICTIONS_FILE, RunFolder, RunInfo, table_logits

# Fewer images of a class say next to nothing about its probability.
MIN_CALIBRATION_IMAGES = 5
_TOLERANCE = 1e-4
_AGAIN = "If the run is still going on, try again in a moment; otherwise train it again"
_COLUMNS = ("split", "label", "patient_id", "duplicate_group")


@dataclass(frozen=True)
class Predictions:
    """The best epoch's logits on val and calibration.

    Attributes:
        logits: float32, (N, K).
        labels: int64, (N,).
        split: str, (N,): ``val`` or ``calibration``.
        groups: int64, (N,): equal for images that belong together (`cxr_ray.data.splits.group_ids`).
    """

    logits: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    groups: np.ndarray

    def calibration_half(self) -> np.ndarray:
        """bool, (N,): the calibration images that temperature and biases are fitted on.

        The other calibration images stay untouched, for what needs images that fitted nothing.
        """
        first = self.split == "calibration"
        first[first] = stratified_half(self.groups[first], self.labels[first])
        return first


def read_predictions(folder: RunFolder, best_epoch: int, classes: list[str]) -> Predictions:
    """Read a run's predictions.

    Args:
        folder: The run's, or the trial's.
        best_epoch: Whose predictions they must be.
        classes: In the order of the logits.

    Raises:
        RunError: There are none, they are damaged, or they are another epoch's.
    """
    table = folder.predictions()
    epoch = (table.schema.metadata or {}).get(b"epoch", b"none").decode(errors="replace")
    if epoch != str(best_epoch):
        raise disagreement(folder, f"{PREDICTIONS_FILE} is of epoch {epoch}, the best epoch is {best_epoch}")
    try:
        columns = {name: table.column(name).to_pylist() for name in _COLUMNS}
        logits = table_logits(table)
        labels = np.array([classes.index(label) for label in columns["label"]], np.int64)
    except (KeyError, ValueError, pa.ArrowInvalid) as error:
        raise RunError(f"{PREDICTIONS_FILE} is damaged ({error})", where=folder, next_step=_AGAIN) from error
    if logits.shape != (len(labels), len(classes)) or not np.isfinite(logits).all():
        problem = f"{PREDICTIONS_FILE} does not hold a finite logit of {len(classes)} classes for every image"
        raise RunError(problem, where=folder, next_step=_AGAIN)
    groups = group_ids(columns["patient_id"], columns["duplicate_group"])
    return Predictions(logits, labels, np.array(columns["split"]), groups)


def validation_metrics(
    predictions: Predictions, best: dict[str, Any], info: RunInfo, folder: RunFolder
) -> dict[str, Any]:
    """Measure the validation split again and compare with what the history says.

    Args:
        predictions: The best epoch's.
        best: The history's row of the same epoch.
        info: What the run says of itself.
        folder: For messages.

    Returns:
        For `BundleInfo.validation`: ``images`` (count), ``images_by_class``, ``metrics`` by full key (None
        where not defined), and ``confusion`` (row the label, column the prediction).

    Raises:
        RunError: History and predictions disagree.
    """
    classes, on_val = info.dataset.classes, predictions.split == "val"
    logits, labels = torch.from_numpy(predictions.logits[on_val]), torch.from_numpy(predictions.labels[on_val])
    if not len(labels):
        raise RunError(f"{PREDICTIONS_FILE} holds no validation images", where=folder, next_step=_AGAIN)
    floor = info.experiment.training.precision_floor
    metrics = classification_metrics(logits, labels, classes, precision_floor=floor)
    for name, value in metrics.items():
        # A metric that the history lacks is one that a later version added.
        stored = best.get(f"val/{name}", value)
        if not _same(value, stored):
            raise disagreement(folder, f"the history says val/{name} {stored}, {PREDICTIONS_FILE} gives {value:.6f}")
    counts = np.bincount(predictions.labels[on_val], minlength=len(classes))
    confusion = confusion_matrix(labels, logits.argmax(dim=1), len(classes))
    return {
        "images": len(labels),
        "images_by_class": dict(zip(classes, counts.tolist(), strict=True)),
        "metrics": {f"val/{name}": None if math.isnan(value) else value for name, value in metrics.items()},
        "confusion": confusion.tolist(),
    }


def calibrate(predictions: Predictions, classes: list[str]) -> tuple[Calibration, str | None]:
    """Fit temperature and class biases on the first half of the calibration split.

    Returns:
        The calibration, and a warning where there were too few images, so that it is the identity.
    """
    half = predictions.calibration_half()
    logits, labels = predictions.logits[half], predictions.labels[half]
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() >= MIN_CALIBRATION_IMAGES:
        return fit_calibration(logits, labels), None
    few = ", ".join(f"{count} of {name}" for name, count in zip(classes, counts.tolist(), strict=True))
    return identity_calibration(len(classes)), (
        f"The probabilities are not calibrated: the half of the calibration split they would be fitted on holds {few}, "
        f"and every class needs {MIN_CALIBRATION_IMAGES}."
    )


def disagreement(folder: RunFolder, problem: str) -> RunError:
    """History, predictions and checkpoint do not belong together."""
    return RunError(f"evidence and history disagree: {problem}", where=folder, next_step=_AGAIN)


def _same(value: float, stored: Any) -> bool:
    if not isinstance(stored, int | float):
        return False
    return (math.isnan(value) and math.isnan(stored)) or abs(value - stored) <= _TOLERANCE
