"""The run folder: what a training run (or one trial of a tuning run) leaves behind, and how it is read."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import save

from cxr_ray.errors import RunError
from cxr_ray.experiment import Experiment
from cxr_ray.paths import Location

EXPERIMENT_FILE = "experiment.json"
STATUS_FILE = "status.json"
HISTORY_FILE = "history.jsonl"
_RESTORE = "Restore it from a copy, promote another trial, or train again"
PREDICTIONS_FILE = "predictions.parquet"
FEATURE_STATS_FILE = "feature_stats.safetensors"
SCHEMA_VERSION = 1
# A run that says "running" but has not been heard of for this long was killed.
SILENT_AFTER_S = 120.0

State = Literal["running", "finished", "stopped", "failed", "interrupted"]


class DatasetSummary(BaseModel):
    """What a run remembers of its dataset.

    Attributes:
        fingerprint: Of the films learnt from.
        stored_fingerprint: Of the whole dataset; another where `exclude_flags` left films out.
        exclude_flags: Quality flags whose films were left out.
        leakage: What the splits share, where the run was started all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    uri: str
    fingerprint: str
    stored_fingerprint: str
    exclude_flags: list[str] = []
    leakage: str | None = None
    classes: list[str]
    image_size: int
    fit: Literal["squash", "pad", "crop"]
    counts: dict[str, dict[str, int]]
    sources: dict[str, int]
    licences: dict[str, int]
    warnings: list[str]


class RunInfo(BaseModel):
    """What `experiment.json` holds: everything that is known when a run starts.

    Attributes:
        trial: The trial's id where the run is part of a tuning run.
        parameters: What the trial was given by the search, by dotted key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    trial: str | None = None
    parameters: dict[str, Any] = {}
    experiment: Experiment
    experiment_fingerprint: str
    dataset: DatasetSummary
    workers: int
    versions: dict[str, str]
    git_commit: str | None
    created: str


class Status(BaseModel):
    """What `status.json` holds: the one file of a run that changes while it goes on.

    Attributes:
        state: ``stopped`` is early stopping or a scheduler's decision; ``interrupted`` can be resumed.
        reason: Why it ended, in words.
        epoch: Epochs completed.
        step: Steps done of the running epoch, of `steps`.
        heartbeat: Unix time of the last sign of life.
        attempt: How often the loop has been started in this folder.
        notes: What this attempt has to say: where it went on, which checkpoints it skipped.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: State
    reason: str = ""
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    heartbeat: float = 0.0
    attempt: int = 0
    notes: list[str] = []

    @property
    def is_silent(self) -> bool:
        return self.state == "running" and time.time() - self.heartbeat > SILENT_AFTER_S

    @property
    def can_resume(self) -> bool:
        return self.state in ("running", "interrupted", "failed")


class Replaced(RunError):
    """The loop was started again in this folder by somebody else, who goes on in this one's place."""


@dataclass(frozen=True)
class Evidence:
    """What the best epoch leaves for leaderboard and promote.

    Attributes:
        epoch: Counted from 1.
        rows: int64, (N,): dataset row numbers, val then calibration.
        logits: float32, (N, K).
        class_means: float32, (K, C): mean pooled features of the training images of every class.
        covariance: float32, (C, C): pooled within-class covariance of the same.
        counts: int64, (K,): images behind every mean.
    """

    epoch: int
    rows: np.ndarray
    logits: np.ndarray
    class_means: np.ndarray
    covariance: np.ndarray
    counts: np.ndarray


class RunFolder:
    """Reads and writes the files of one run; checkpoints are `cxr_ray.training.checkpoints`' part."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def __str__(self) -> str:
        return str(self.location)

    def exists(self) -> bool:
        return self.location.child(EXPERIMENT_FILE).exists()

    def write_info(self, info: RunInfo) -> None:
        self.location.make_dir()
        self.location.child(EXPERIMENT_FILE).write_bytes((info.model_dump_json(indent=2) + "\n").encode())

    def info(self) -> RunInfo:
        """Raises RunError where there is no run, or one of another version."""
        file = self.location.child(EXPERIMENT_FILE)
        if not file.exists():
            raise RunError(f"is not a run (it holds no {EXPERIMENT_FILE})", where=self)
        try:
            return RunInfo.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise RunError(
                f"{EXPERIMENT_FILE} is damaged or was written by another version of cxr-ray", where=self
            ) from error

    def write_status(self, status: Status) -> None:
        stamped = status.model_copy(update={"heartbeat": time.time()})
        self.location.child(STATUS_FILE).write_bytes(stamped.model_dump_json().encode())

    def status(self) -> Status | None:
        """None before the first step, or where the file is unreadable."""
        try:
            return Status.model_validate_json(self.location.child(STATUS_FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.location.child(HISTORY_FILE).write_bytes(text.encode())

    def history(self) -> list[dict[str, Any]]:
        """One row an epoch, in order; empty before the first. Raises RunError on a damaged file."""
        file = self.location.child(HISTORY_FILE)
        if not file.exists():
            return []
        try:
            return [json.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
        except ValueError as error:
            raise RunError(f"{HISTORY_FILE} is damaged", where=self) from error

    def write_evidence(self, evidence: Evidence, table: pa.Table) -> None:
        """Write the best epoch's predictions (a table from `evidence_table`) and feature statistics."""
        sink = io.BytesIO()
        pq.write_table(table, sink)
        self.location.child(PREDICTIONS_FILE).write_bytes(sink.getvalue())
        tensors = {
            "class_means": evidence.class_means,
            "covariance": evidence.covariance,
            "counts": evidence.counts,
        }
        self.location.child(FEATURE_STATS_FILE).write_bytes(save(tensors, {"epoch": str(evidence.epoch)}))

    def predictions(self) -> pa.Table:
        """The best epoch's logits on val and calibration. Raises RunError where there are none."""
        file = self.location.child(PREDICTIONS_FILE)
        if not file.exists():
            raise RunError(f"{PREDICTIONS_FILE} is missing", where=self, next_step=_RESTORE)
        try:
            return pq.read_table(io.BytesIO(file.read_bytes()), use_threads=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{PREDICTIONS_FILE} is damaged ({error})", where=self, next_step=_RESTORE) from error


def evidence_table(evidence: Evidence, manifest: pa.Table) -> pa.Table:
    """The predictions as a table: who the images are, and ``logit_0`` to ``logit_K-1`` (float32)."""
    names = ["image_id", "split", "label", "source", "patient_id", "duplicate_group"]
    table = manifest.select(names).take(pa.array(evidence.rows))
    for k in range(evidence.logits.shape[1]):
        table = table.append_column(f"logit_{k}", pa.array(evidence.logits[:, k]))
    return table.replace_schema_metadata({"epoch": str(evidence.epoch)})


def table_logits(table: pa.Table) -> np.ndarray:
    """float32, (N, K), from a table of predictions."""
    columns = [name for name in table.column_names if name.startswith("logit_")]
    ordered = sorted(columns, key=lambda name: int(name.removeprefix("logit_")))
    return np.stack([table.column(name).to_numpy() for name in ordered], axis=1)


def best_row(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the best epoch so far; None before the first."""
    return next((row for row in reversed(history) if row.get("best")), None)


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
