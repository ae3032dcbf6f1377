"""The leaderboard: the trials of a run, best first, read from its folder alone; needs no Ray, data or weights."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cxr_ray.errors import RunError, did_you_mean
from cxr_ray.experiment import Experiment, check_metric, full_metric_key, lower_is_better
from cxr_ray.leaderboard.board import Board, Row
from cxr_ray.paths import Location, locate
from cxr_ray.training.run_folder import EXPERIMENT_FILE, HISTORY_FILE, DatasetSummary, RunFolder, Status, best_row
from cxr_ray.tuning.space import SPACE_FILE

# Only to hide the latency of remote storage; local files come from memory either way.
_READERS = 16
_PREFIX = "trial_"


class _Space(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    metric: str
    trials: int
    parameters: dict[str, Any]


class _TuningRun(BaseModel):
    """The part of `space.json` that the board needs."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    space: _Space
    base: Experiment
    dataset: DatasetSummary


def read_leaderboard(run: str | Path | Location, *, sort: str | None = None) -> Board:
    """Read a training or tuning run, finished or still going on.

    Args:
        run: The run's folder, local or URI.
        sort: A validation metric to sort by instead of the run's own; ``val/`` may be left out. Losses ascend.

    Raises:
        RunError: There is no run, it has no trial yet, or its own description is damaged. One damaged trial
            is a row that says so instead.
        ConfigError: `sort` is not a validation metric.
        CxrError: There is no file system for the address.
    """
    location = locate(run)
    try:
        return _read_run(location, sort)
    except OSError as error:
        raise RunError(
            f"cannot be read ({error})",
            where=location,
            next_step="Check its permissions, and the network if it is remote",
        ) from error


def _read_run(location: Location, sort: str | None) -> Board:
    if location.child(SPACE_FILE).exists():
        return _tuning_board(location, sort)
    if location.child(EXPERIMENT_FILE).exists():
        return _training_board(location, sort)
    raise _not_a_run(location)


def _training_board(location: Location, sort: str | None) -> Board:
    folder = RunFolder(location)
    info = folder.info()
    metric, classes = info.experiment.training.metric, info.dataset.classes
    sort = _checked(sort, metric, classes)
    try:
        row = _read_row(folder, info.trial or info.name, "", metric)
    except RunError as error:
        raise RunError(
            error.problem,
            where=location,
            next_step=error.next_step or "Restore the file from a copy, or train again under another --name",
        ) from error
    return Board(
        name=info.name,
        kind="training",
        location=location,
        dataset=info.dataset,
        metric=metric,
        sort=sort,
        classes=classes,
        watched_class=info.experiment.watched(classes),
        planned_trials=1,
        parameters=list(info.parameters),
        rows=(row,),
    )


def _tuning_board(location: Location, sort: str | None) -> Board:
    try:
        info = _TuningRun.model_validate_json(location.child(SPACE_FILE).read_bytes())
    except ValidationError as error:
        raise RunError(
            f"{SPACE_FILE} is damaged or was written by another version of cxr-ray",
            where=location,
            next_step="Restore it from a copy; every trial folder in it is still a run of its own",
        ) from error
    classes = info.dataset.classes
    metric = full_metric_key(info.space.metric)
    sort = _checked(sort, metric, classes)
    names = [name for name in location.children() if name.startswith(_PREFIX)]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: _read_trial(location.child(name), info.dataset.fingerprint, metric), names)
        rows = [row for row in found if row is not None]
    if not rows:
        raise RunError(
            "has no trials yet",
            where=location,
            next_step="Wait if it has just started; if it was killed, continue it with cxr-ray tune --resume",
        )
    return Board(
        name=info.name,
        kind="tuning",
        location=location,
        dataset=info.dataset,
        metric=metric,
        sort=sort,
        classes=classes,
        watched_class=info.base.watched(classes),
        planned_trials=info.space.trials,
        parameters=list(info.space.parameters),
        rows=tuple(sorted(rows, key=lambda row: _rank(row, sort))),
    )


def _checked(sort: str | None, metric: str, classes: list[str]) -> str:
    if sort is None:
        return metric
    check_metric(sort, classes, "--sort")
    return full_metric_key(sort)


def _rank(row: Row, metric: str) -> tuple[bool, float, float, str]:
    score = row.score(metric)
    if score is None:
        return True, 0.0, 0.0, row.trial
    # A class's recall ties easily, at 1 for a network that says nothing else; macro-F1 then tells them apart.
    balance = row.score("val/macro_f1") or 0.0
    return False, score if lower_is_better(metric) else -score, -balance, row.trial


def _read_trial(location: Location, fingerprint: str, metric: str) -> Row | None:
    """The row of a trial's folder, whatever state it is in; None where it is no folder."""
    folder, trial = RunFolder(location), location.name.removeprefix(_PREFIX)
    try:
        if not folder.exists():
            return _row_before_start(folder, trial) if location.is_dir() else None
        return _read_row(folder, trial, location.name, metric, fingerprint)
    except RunError as error:
        return Row(trial, location.name, "broken", error.problem)
    except OSError as error:
        return Row(trial, location.name, "broken", f"cannot be read ({error})")


def _row_before_start(folder: RunFolder, trial: str) -> Row:
    name = folder.location.name
    if folder.location.child(HISTORY_FILE).exists():
        return Row(trial, name, "broken", f"{EXPERIMENT_FILE} is missing")
    # A trial that dies before its first line of code has a status and nothing else.
    return Row(trial, name, *_state(folder.status(), 0))


def _read_row(folder: RunFolder, trial: str, name: str, metric: str, fingerprint: str | None = None) -> Row:
    info, status, history = folder.info(), folder.status(), folder.history()
    if fingerprint not in (None, info.dataset.fingerprint):
        other = info.dataset
        raise RunError(f"was measured on another dataset, {other.name} ({other.fingerprint})", where=folder)
    word, reason = _state(status, len(history))
    best_epoch, metrics, seconds, curve = None, {}, 0.0, ()
    if history:
        try:
            best = best_row(history)
            if best is None:
                raise KeyError("best")
            best_epoch = int(best["epoch"])
            metrics = {key: float(value) for key, value in best.items() if key.startswith("val/")}
            seconds = sum(float(row["seconds"]) for row in history)
            curve = tuple(float(row[metric]) for row in history)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{HISTORY_FILE} is damaged ({type(error).__name__}: {error})", where=folder) from error
    return Row(
        trial=trial,
        folder=name,
        status=word,
        reason=reason,
        epochs=len(history),
        planned_epochs=info.experiment.training.epochs,
        best_epoch=best_epoch,
        metrics=metrics,
        parameters=info.parameters,
        seconds=seconds,
        val_images=sum(info.dataset.counts.get("val", {}).values()),
        curve=curve,
    )


def _state(status: Status | None, epochs: int) -> tuple[str, str]:
    if status is None:
        return ("unknown", "its status is missing or damaged") if epochs else ("pending", "has written nothing yet")
    if status.is_silent:
        minutes = (time.time() - status.heartbeat) / 60
        return "silent", f"not heard of for {minutes:,.0f} minutes: it was probably killed"
    if status.state == "running":
        step = f", step {status.step} of {status.steps}" if status.steps else ""
        return "running", f"epoch {min(status.epoch + 1, status.epochs)} of {status.epochs}{step}"
    return status.state, status.reason


def _not_a_run(location: Location) -> RunError:
    storage = location.parent
    if not location.exists():
        beside = _runs_in(storage)
        hint = did_you_mean(location.name, beside)
        where = f"; the runs beside it are {', '.join(beside)}" if beside else ""
        return RunError(f"there is no such folder{hint}{where}", where=location, next_step="Name a run's folder")
    if not location.is_dir():
        return RunError("is a file, not a run", where=location, next_step=f"Name the run's folder, such as {storage}")
    inside = _runs_in(location)
    if inside:
        return RunError(
            f"is not a run but holds runs: {', '.join(inside)}",
            where=location,
            next_step=f"Name one of them, such as {location.child(inside[-1])}",
        )
    return RunError(
        f"is not a run (it holds neither {EXPERIMENT_FILE} nor {SPACE_FILE})",
        where=location,
        next_step="Name a folder that cxr-ray train or cxr-ray tune has written",
    )


def _runs_in(storage: Location) -> list[str]:
    return [
        name
        for name in storage.children()
        if storage.child(name, SPACE_FILE).exists() or RunFolder(storage.child(name)).exists()
    ]
