"""The board for people. In a terminal what fits is shown, what does not is named, nothing is cut; the page is
`cxr_ray.leaderboard.page`'s part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from cxr_ray.leaderboard.board import Board, Row
from cxr_ray.leaderboard.page import render_html, write_html
from cxr_ray.leaderboard.text import (
    NOTHING,
    TROUBLE,
    best_sentence,
    caution_sentence,
    data_sentences,
    duration_text,
    epochs_text,
    metric_words,
    parameter_text,
    promote_command,
    score_text,
    short_names,
    states_sentence,
)

__all__ = ["render_html", "render_terminal", "write_html"]

_GAP = "  "
_HEADER_LETTERS = 7
_STYLES = {"running": "cyan", "failed": "red", "broken": "red", "silent": "red"}


@dataclass(frozen=True)
class _Column:
    """One column; of those with a `drop`, the highest goes first where the terminal is too narrow."""

    name: str
    header: list[str]
    cells: list[str]
    left: bool = False
    drop: int = 0

    @property
    def width(self) -> int:
        return max(Text(text).cell_len for text in (*self.header, *self.cells))

    def fill(self, text: str) -> str:
        space = " " * (self.width - Text(text).cell_len)
        return text + space if self.left else space + text


def render_terminal(board: Board, console: Console) -> None:
    """Print the board: a head, the table, the best trial, and the trials in trouble with their reasons.

    Args:
        board: What to show.
        console: Where to. In a terminal, parameters that do not fit beside the metrics get a table of their
            own, and columns that do not fit even so are left out and named. A pipe or a file gets one table
            with everything, however wide.
    """
    trial, metrics, parameters = _trial_columns(board), _metric_columns(board), _parameter_columns(board)
    tables = [trial + metrics + parameters]
    left_out: list[_Column] = []
    if console.is_terminal:
        if _width(tables[0]) > console.width and parameters:
            tables = [trial + metrics, trial[:2] + parameters]
        left_out = [column for table in tables for column in _drop(table, console.width)]
    _say(console, _head(board), style="bold")
    if board.kind == "tuning":
        _say(console, f"{states_sentence(board)}. Sorted by {metric_words(board.sort)}.")
    for table in tables:
        _say(console)
        _print_table(board, [column for column in table if column not in left_out], console)
    _say(console)
    _say(console, "The columns named after classes are recalls at the best epoch; * is the watched class.", style="dim")
    if left_out:
        _say(console, f"Left out for lack of width: {', '.join(column.name for column in left_out)}.", style="dim")
    _say(console)
    for sentence in data_sentences(board.dataset):
        _say(console, sentence, style="red")
    _say(console, best_sentence(board))
    if board.best is not None:
        _tell_best(board, board.best, console)
    trouble = [row for row in board.rows if row.status in TROUBLE]
    if trouble:
        _say(console)
    for row in trouble:
        _say(console, f"{row.trial} {row.status}: {row.reason}")


def _head(board: Board) -> str:
    classes, dataset = len(board.classes), board.dataset.name
    return f"{board.name}: {board.kind} on {dataset} ({classes} classes, {board.val_images:,} validation images)"


def _tell_best(board: Board, best: Row, console: Console) -> None:
    if best.parameters:
        _say(console, ", ".join(f"{key} = {parameter_text(best, key)}" for key in best.parameters))
    _say(console, caution_sentence(board))
    # Not wrapped, so that it can be copied.
    console.print(Text(f"Promote it: {_plain(promote_command(board))}"), soft_wrap=True)


def _trial_columns(board: Board) -> list[_Column]:
    rows = board.rows
    ranks = [NOTHING if row.score(board.sort) is None else str(number) for number, row in enumerate(rows, start=1)]
    return [
        _column("rank", "#", ranks),
        _column("trial", "trial" if board.kind == "tuning" else "run", [row.trial for row in rows], left=True),
        _column("status", "status", [row.status for row in rows], left=True),
        _column("epochs", "epochs", [epochs_text(row) for row in rows], drop=1),
    ]


def _metric_columns(board: Board) -> list[_Column]:
    recalls = {f"val/recall/{name}": name for name in board.classes}
    columns = []

    def add(metric: str, header: str, drop: int = 0) -> None:
        cells = [score_text(row.score(metric)) for row in board.rows]
        columns.append(_column(metric_words(metric), header, cells, drop=0 if metric == board.sort else drop))

    if board.sort not in (*recalls, "val/macro_f1", "val/accuracy"):
        add(board.sort, metric_words(board.sort))
    add("val/macro_f1", "macro F1")
    add("val/accuracy", "accuracy", drop=3)
    for metric, name in recalls.items():
        watched = name == board.watched_class
        add(metric, name.replace("_", " ") + ("*" if watched else ""), drop=0 if watched else 2)
    columns.append(_column("time", "time", [duration_text(row.seconds) for row in board.rows], drop=4))
    return columns


def _parameter_columns(board: Board) -> list[_Column]:
    names = short_names(board.varying, taken=board.classes)
    return [
        _column(key, name, [parameter_text(row, key) for row in board.rows], drop=10 + place)
        for place, (key, name) in enumerate(zip(board.varying, names, strict=True))
    ]


def _column(name: str, header: str, cells: Iterable[str], *, left: bool = False, drop: int = 0) -> _Column:
    return _Column(_plain(name), _fold(_plain(header)), [_plain(cell) for cell in cells], left, drop)


def _width(columns: list[_Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _drop(columns: list[_Column], width: int) -> list[_Column]:
    """The columns to leave out so that the others fit, in their order."""
    kept = list(columns)
    for column in sorted(columns, key=lambda column: -column.drop):
        if _width(kept) <= width or not column.drop:
            break
        kept.remove(column)
    return [column for column in columns if column not in kept]


def _print_table(board: Board, columns: list[_Column], console: Console) -> None:
    # Laid out here: rich's own table cuts cells to the console's width, in a pipe to 80 letters.
    lines = max(len(column.header) for column in columns)
    for line in range(-lines, 0):
        cells = [column.fill(column.header[line] if len(column.header) >= -line else "") for column in columns]
        console.print(Text(_GAP.join(cells).rstrip(), style="bold"), soft_wrap=True)
    for number, row in enumerate(board.rows):
        text = Text(style="bold" if row is board.best else "")
        for column in columns:
            style = _STYLES.get(row.status, "") if column.name == "status" else ""
            text.append(column.fill(column.cells[number]), style).append(_GAP)
        text.rstrip()
        console.print(text, soft_wrap=True)


def _fold(name: str) -> list[str]:
    """A header in short lines, broken between its words; only a long word is broken inside."""
    lines: list[str] = []
    for word in name.replace("_", "_ ").replace(".", ". ").split():
        joint = "" if lines and lines[-1].endswith(("_", ".")) else " "
        if lines and len(lines[-1] + joint + word) <= _HEADER_LETTERS:
            lines[-1] += joint + word
        elif len(word) > _HEADER_LETTERS + 2:
            half = (len(word) + 1) // 2
            lines += [f"{word[:half]}-", word[half:]]
        else:
            lines.append(word)
    return lines


def _plain(text: str) -> str:
    """Text without control characters: a run's names and reasons must not steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _say(console: Console, text: str = "", style: str = "") -> None:
    console.print(Text(_plain(text), style=style), soft_wrap=not console.is_terminal)
