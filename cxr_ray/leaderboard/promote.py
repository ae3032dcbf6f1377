"""Promote: from the best trial of a run to a bundle that says what it is and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cxr_ray.bundle import Bundle, BundleInfo, Preprocessing, load_bundle, write_bundle
from cxr_ray.errors import BundleError, RunError, did_you_mean
from cxr_ray.leaderboard.board import Board, Row
from cxr_ray.leaderboard.card import model_card
from cxr_ray.leaderboard.evidence import (
    Predictions,
    calibrate,
    disagreement,
    read_predictions,
    validation_metrics,
)
from cxr_ray.leaderboard.rows import read_leaderboard
from cxr_ray.leaderboard.text import data_sentences
from cxr_ray.metrics.calibration import Calibration
from cxr_ray.model.dual_backbone import DualBackbone
from cxr_ray.paths import Location, locate
from cxr_ray.training.checkpoints import load_checkpoint
from cxr_ray.training.loop import network_of
from cxr_ray.training.run_folder import RunFolder, RunInfo, best_row, now

_WHOLE = ("finished", "stopped")


def promote(run: str | Path, *, out: str | Path, trial: str | None = None, name: str | None = None) -> Bundle:
    """Make a bundle of a run's best epoch; needs neither Ray nor the data.

    Args:
        run: A training or tuning run, local or URI.
        out: The bundle's folder, which must not exist yet.
        trial: A trial of a tuning run, by default the best by the run's own metric.
        name: The bundle's name, by default the run's, with the trial's id behind it.

    Returns:
        The bundle as loaded from `out`, verified and run once.

    Raises:
        RunError: There is no such run or trial, it has no finished epoch, its checkpoint is missing or torn,
            or its history, predictions and checkpoint do not belong together.
        BundleError: `out` exists, or the bundle written does not work.
    """
    board = read_leaderboard(run)
    row = _choose(board, trial)
    folder = RunFolder(board.location.child(row.folder) if row.folder else board.location)
    info, history = folder.info(), folder.history()
    best = best_row(history)
    if best is None:
        raise RunError("has no finished epoch", where=folder, next_step="Wait for one, or name another --trial")
    classes, epoch = info.dataset.classes, int(best["epoch"])
    predictions = read_predictions(folder, epoch, classes)
    validation = validation_metrics(predictions, best, info, folder)
    calibration, uncalibrated = calibrate(predictions, classes)
    bundle_info = BundleInfo(
        name=name or _name(board, row),
        created=now(),
        classes=classes,
        watched_class=info.experiment.watched(classes),
        preprocessing=Preprocessing(
            dataset_size=info.dataset.image_size,
            fit=info.dataset.fit,
            network_size=info.experiment.training.image_size,
        ),
        network=info.experiment.network,
        calibration=calibration,
        thresholds=calibration.decision_thresholds(),
        validation=validation,
        provenance=_provenance(board, row, info, epoch, len(history), calibration),
        warnings=[text for text in (_unfinished(row), uncalibrated, *data_sentences(info.dataset)) if text],
    )
    network = _network(folder, epoch, info, predictions)
    write_bundle(out, bundle_info, network.state_dict(), model_card(bundle_info, info), history)
    return _proven(locate(out))


def _choose(board: Board, trial: str | None) -> Row:
    if trial is None:
        if board.best is None:
            states = ", ".join(f"{row.trial} {row.status} ({row.reason})" for row in board.rows)
            raise RunError(
                f"has no finished epoch to promote: {states}",
                where=board.location,
                next_step="Wait for one, or mend what stopped it and start again",
            )
        return board.best
    for row in board.rows:
        if trial in (row.trial, row.folder):
            if row.best_epoch is None:
                problem = f"trial {row.trial} has no finished epoch: it is {row.status}, {row.reason}"
                raise RunError(problem, where=board.location, next_step="Wait for one, or name another --trial")
            return row
    names = [row.trial for row in board.rows]
    raise RunError(
        f"there is no trial '{trial}'{did_you_mean(trial, names)}; best first, there are {', '.join(names)}",
        where=board.location,
        next_step="Name one of them with --trial, or leave it out for the best",
    )


def _name(board: Board, row: Row) -> str:
    return f"{board.name}-{row.trial}" if board.kind == "tuning" else board.name


def _unfinished(row: Row) -> str | None:
    if row.status in _WHOLE:
        return None
    reason = f" ({row.reason})" if row.reason else ""
    return f"Training had not come to its end when this was promoted: it was {row.status}{reason}."


def _network(folder: RunFolder, epoch: int, info: RunInfo, predictions: Predictions) -> DualBackbone:
    """The best epoch's network, if its checkpoint is whole and has made these predictions."""
    name = f"checkpoint_{epoch:06d}"
    where = folder.location.child(name)
    state = load_checkpoint(folder.location, epoch)
    if state is None:
        problem = "is torn or changed: its checksum does not verify" if where.exists() else "is missing"
        raise RunError(problem, where=where, next_step="Restore it from a copy, promote another trial, or train again")
    logits = state["evidence"]["logits"].numpy()
    if state["best_epoch"] != epoch or not np.array_equal(logits, predictions.logits):
        raise disagreement(folder, f"the predictions are not those of {name}")
    try:
        return network_of(state, info.experiment, len(info.dataset.classes))
    except RuntimeError as error:
        raise disagreement(folder, f"the weights in {name} do not fit the network in experiment.json") from error


def _provenance(
    board: Board, row: Row, info: RunInfo, best_epoch: int, epochs: int, calibration: Calibration
) -> dict[str, Any]:
    return {
        "run": board.name,
        "run_uri": board.location.uri,
        "kind": board.kind,
        "trial": info.trial,
        "parameters": info.parameters,
        "metric": board.metric,
        "compared_trials": board.scored,
        "status": row.status,
        "best_epoch": best_epoch,
        "epochs": epochs,
        "experiment": info.experiment.model_dump(mode="json"),
        "experiment_fingerprint": info.experiment_fingerprint,
        "dataset": info.dataset.model_dump(mode="json"),
        "workers": info.workers,
        "versions": info.versions,
        "git_commit": info.git_commit,
        "started": info.created,
        "promoted": now(),
        "calibration": {
            "method": "temperature and class biases by maximum likelihood" if calibration.images else "none",
            "images": calibration.images,
            "fitted_on": "one half of the calibration split, whole patients and duplicate groups at a time",
        },
    }


def _proven(location: Location) -> Bundle:
    """The bundle there, loaded and run on a blank film; taken away again if that does not work."""
    try:
        bundle = load_bundle(location)
        size = bundle.info.preprocessing.network_size
        if not np.isfinite(bundle.logits(np.zeros((1, size, size), np.uint8))).all():
            raise BundleError("its answer to a blank film is not a number", where=location, next_step="Train again")
    except BaseException:
        location.delete_dir()
        raise
    return bundle
