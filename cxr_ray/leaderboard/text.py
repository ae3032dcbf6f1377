"""How the board's numbers and sentences read, the same in the terminal and on the page."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cxr_ray.leaderboard.board import Board, Row
from cxr_ray.training.run_folder import DatasetSummary

NOTHING = "–"
_PLAIN = {"macro_f1": "macro-F1", "macro_recall": "macro recall", "macro_precision": "macro precision"}
_OF_CLASS = {"recall_at_precision": "recall at fixed precision", "f1": "F1"}
# Statuses that a reader must know the reason of.
TROUBLE = ("failed", "broken", "silent", "interrupted", "unknown")


def score_text(value: float | None) -> str:
    """Three decimals, or a dash."""
    return NOTHING if value is None else f"{value:.3f}"


def value_text(value: Any) -> str:
    """A parameter's value: numbers to four digits, texts as they are, anything else as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def parameter_text(row: Row, key: str) -> str:
    """A parameter of a trial, or a dash where the trial does not say."""
    return value_text(row.parameters[key]) if key in row.parameters else NOTHING


def duration_text(seconds: float) -> str:
    """``48 s``, ``12 min`` or ``3.4 h``; a dash for none."""
    if not seconds:
        return NOTHING
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def epochs_text(row: Row) -> str:
    """``8/20``: epochs done, of at most."""
    return f"{row.epochs}/{row.planned_epochs}" if row.planned_epochs else NOTHING


def metric_words(metric: str) -> str:
    """A metric key as people say it: ``val/recall/covid`` becomes ``recall of covid``."""
    kind, _, label = metric.removeprefix("val/").partition("/")
    if label:
        return f"{_OF_CLASS.get(kind, kind)} of {label.replace('_', ' ')}"
    return _PLAIN.get(kind, kind)


def short_names(keys: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Dotted keys by as few of their last parts as tell them apart from each other and from `taken`."""

    def tail(key: str, parts: int) -> str:
        return ".".join(key.split(".")[-parts:])

    names = []
    for key in keys:
        depth = key.count(".") + 1
        clear = (
            parts
            for parts in range(1, depth)
            if tail(key, parts) not in taken and Counter(tail(other, parts) for other in keys)[tail(key, parts)] == 1
        )
        names.append(tail(key, next(clear, depth)))
    return names


def states_sentence(board: Board) -> str:
    """How many trials there are, of how many, and how they are."""
    states = ", ".join(f"{count} {state}" for state, count in board.states.items())
    return f"{len(board.rows)} of {counted(board.planned_trials, 'trial')}: {states}"


def best_sentence(board: Board) -> str:
    """The best row, or why there is none."""
    best = board.best
    if best is None:
        return "No trial has a finished epoch yet."
    watched = f"val/recall/{board.watched_class}"
    metrics = dict.fromkeys((board.sort, "val/macro_f1", watched, "val/accuracy"))
    scores = ", ".join(f"{metric_words(key)} {score_text(best.score(key))}" for key in metrics)
    what = f"Trial {best.trial} leads with" if board.kind == "tuning" else "The run reached"
    return f"{what} {scores}, after epoch {best.best_epoch} of {best.epochs}."


def lead_sentence(board: Board) -> str:
    """Which row is first, for where its numbers stand beside."""
    best = board.best
    if best is None:
        return "No trial has a finished epoch yet."
    where = f"on {board.dataset.name}, at epoch {best.best_epoch} of {best.epochs}"
    if board.kind == "training":
        return f"The best epoch {where}."
    return f"Trial {best.trial} leads {counted(board.scored, 'trial')} by {metric_words(board.sort)} {where}."


def caution_sentence(board: Board) -> str:
    """Why the best of many is worse than it looks; empty where nothing was chosen yet."""
    if board.best is None:
        return ""
    among = counted(board.scored, "trial") if board.scored > 1 else counted(board.best.epochs, "epoch")
    return (
        f"The best of {among} on {counted(board.val_images, 'validation image')} looks better than it is; "
        "how good it is, only the test split can tell."
    )


def data_sentences(dataset: DatasetSummary) -> list[str]:
    """What was allowed or left out when the run was started, and every reader of its numbers must know."""
    sentences = []
    if dataset.leakage:
        sentences.append(
            f"Leakage was allowed (--allow-leakage): {dataset.leakage}, so scores look better than they are."
        )
    if dataset.exclude_flags:
        flags = ", ".join(dataset.exclude_flags)
        sentences.append(f"Films flagged {flags} were left out of training and of these scores.")
    return sentences


def promote_command(board: Board) -> str:
    """What makes a bundle of the best row."""
    best = board.best
    trial = f" --trial {shlex.quote(best.trial)}" if best is not None and board.sort != board.metric else ""
    out = shlex.quote(f"bundles/{board.name}")
    return f"cxr-ray promote {shlex.quote(board.location.uri)}{trial} --out {out}"


def counted(number: int, noun: str) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
