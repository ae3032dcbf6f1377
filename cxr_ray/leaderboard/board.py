"""What a board is: a run, and one row a trial."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from cxr_ray.paths import Location
from cxr_ray.training.run_folder import DatasetSummary


@dataclass(frozen=True)
class Row:
    """One trial, judged by its best epoch.

    Attributes:
        trial: The trial's id; a training run's only row carries the run's name.
        folder: Name of its folder inside the run; empty for a training run.
        status: ``running``, ``finished``, ``stopped``, ``failed`` or ``interrupted`` as the trial says itself;
            ``silent`` (says running, but was not heard of lately), ``pending``, ``unknown`` (its status is
            unreadable) or ``broken`` (it cannot be read).
        reason: Why it ended, or how far it is, in words.
        epochs: Epochs completed.
        planned_epochs: At most this many; 0 where not known.
        best_epoch: Counted from 1; None before the first is complete.
        metrics: Validation metrics of the best epoch by full key; empty without one.
        parameters: What the search chose, by dotted key.
        seconds: Time of all its epochs, training and validation.
        val_images: Images the metrics are measured on.
        curve: The run's metric, epoch by epoch.
    """

    trial: str
    folder: str
    status: str
    reason: str
    epochs: int = 0
    planned_epochs: int = 0
    best_epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    val_images: int = 0
    curve: tuple[float, ...] = ()

    def score(self, metric: str) -> float | None:
        """A metric of the best epoch by full key; None without an epoch, or where it is not a number."""
        value = self.metrics.get(metric)
        return None if value is None or math.isnan(value) else value


@dataclass(frozen=True)
class Board:
    """A run's trials, best first.

    Attributes:
        name: The run's.
        kind: A training run has one row.
        location: The run's folder.
        dataset: What the run remembers of its dataset.
        metric: The run's own: it chose every trial's best epoch.
        sort: What the rows are sorted by; rows without it stand last.
        classes: In the dataset's order.
        watched_class: The class whose misses cost most.
        planned_trials: How many the search was asked for; 1 for a training run.
        parameters: Dotted keys of what the search chose, in its order.
        rows: One a trial.
    """

    name: str
    kind: Literal["tuning", "training"]
    location: Location
    dataset: DatasetSummary
    metric: str
    sort: str
    classes: list[str]
    watched_class: str
    planned_trials: int
    parameters: list[str]
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """The first row; None where no trial has a finished epoch."""
        return self.rows[0] if self.rows and self.rows[0].score(self.sort) is not None else None

    @property
    def scored(self) -> int:
        """How many trials have a finished epoch."""
        return sum(row.best_epoch is not None for row in self.rows)

    @property
    def val_images(self) -> int:
        return sum(self.dataset.counts.get("val", {}).values())

    @property
    def states(self) -> dict[str, int]:
        """How many trials there are of every status, most frequent first."""
        return dict(Counter(row.status for row in self.rows).most_common())

    @property
    def varying(self) -> list[str]:
        """The parameters that differ between trials."""
        known = [row.parameters for row in self.rows if row.parameters]
        return [key for key in self.parameters if len({repr(values.get(key)) for values in known}) > 1]
