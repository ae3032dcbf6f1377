"""The board as one page to keep and to send: `leaderboard --html`."""

from __future__ import annotations

import math
import os
import re

from cxr_ray.errors import RunError
from cxr_ray.experiment import lower_is_better
from cxr_ray.html import Html, element, esc, facts, figures, join, page, section, table, words
from cxr_ray.leaderboard.board import Board, Row
from cxr_ray.leaderboard.text import (
    NOTHING,
    TROUBLE,
    caution_sentence,
    counted,
    data_sentences,
    duration_text,
    epochs_text,
    lead_sentence,
    metric_words,
    parameter_text,
    promote_command,
    score_text,
    short_names,
    states_sentence,
)
from cxr_ray.paths import Location, locate
from cxr_ray.training.run_folder import now

_CURVE_WIDTH, _CURVE_HEIGHT, _CURVE_EDGE = 104, 26, 3
_ID_LETTERS = 12
_STYLE = """
main{max-width:96rem}
.board th,.board td{padding:.42rem .4rem;font-size:.9rem}
.board th:first-child{padding-left:0}
.board thead th{white-space:normal;line-height:1.25;font-size:.8rem}
.board thead .tag{margin:0;font-size:.7rem}
.board tbody th{position:sticky;left:0;background:var(--paper)}
.board .rank{display:inline-block;min-width:1.6rem;color:var(--muted);font-weight:400}
.board .lead{color:var(--accent);font-weight:650}
.board .metric{min-width:4.7rem;width:5.2rem}
.board .bar{background:linear-gradient(90deg,rgb(var(--accent-rgb)/.17) var(--share),transparent 0) 50%/
calc(100% - .4rem) 62% no-repeat}
.board .sorted{font-weight:650}
.spark{display:block;width:6rem;height:1.5rem;color:var(--muted)}
.spark.lead{color:var(--accent)}
.spark polyline{fill:none;stroke:currentColor;stroke-width:1.4;stroke-linejoin:round;stroke-linecap:round}
.spark circle{fill:currentColor}
.trouble th,.trouble td{padding-right:1.4rem;text-align:left}
.trouble td:last-child{width:100%;min-width:11rem;white-space:normal;overflow-wrap:anywhere}
.command{display:block;padding:.7rem .9rem;background:var(--card);border-radius:.45rem;overflow-x:auto;
white-space:pre;overflow-wrap:normal;max-width:100%}
"""


def write_html(board: Board, out: str | os.PathLike[str] | Location) -> Location:
    """Write `render_html`'s page to a file, whole or not at all.

    Args:
        board: What to show.
        out: The file, local or URI; one that exists is replaced.

    Raises:
        RunError: `out` is a folder, or cannot be written.
    """
    location = locate(out)
    if location.is_dir():
        example = location.child("leaderboard.html")
        raise RunError("is a folder", where=location, next_step=f"Name a file, such as {example}")
    try:
        location.write_bytes(render_html(board).encode())
    except OSError as error:
        raise RunError(f"the page cannot be written ({error})", where=location) from error
    return location


def render_html(board: Board) -> str:
    """The board as one self-contained HTML page: no script, nothing fetched, light and dark."""
    parts = (_headline(board), _caution(board), _trials(board), _trouble(board), _about(board), _promote(board))
    return page(f"Leaderboard of {board.name}", join(parts), style=_STYLE)


def _headline(board: Board) -> Html:
    return element(
        "header",
        element("p", f"Leaderboard of a {board.kind} run", class_="eyebrow"),
        element("h1", board.name),
        element("p", lead_sentence(board), class_="lede"),
        _figures(board, board.best) if board.best else None,
    )


def _figures(board: Board, best: Row) -> Html:
    watched = board.watched_class
    notes = {
        "val/macro_f1": f"mean over {len(board.classes)} classes",
        f"val/recall/{watched}": f"the watched class, n = {board.dataset.counts.get('val', {}).get(watched, 0):,}",
        "val/accuracy": f"n = {board.val_images:,}",
    }
    chosen = list(dict.fromkeys((board.sort, *notes)))[:3]
    return figures((score_text(best.score(key)), metric_words(key), notes.get(key)) for key in chosen)


def _caution(board: Board) -> Html:
    alarm = data_sentences(board.dataset)
    text = caution_sentence(board)
    alarms = element("div", *(element("p", element("b", told)) for told in alarm), class_="callout alarm")
    caution = element("div", element("p", text), class_="callout")
    return join((alarms if alarm else "", caution if text else ""))


def _trials(board: Board) -> Html:
    rows = [_board_row(board, place, row) for place, row in enumerate(board.rows, start=1)]
    measured = f"Measured at the best epoch by {metric_words(board.metric)}, on {board.val_images:,} validation images."
    if board.kind == "tuning":
        measured = f"{states_sentence(board)}. Best first by {metric_words(board.sort)}. {measured}"
    return section(
        "Trials" if board.kind == "tuning" else "Result",
        element("p", f"{measured} Columns named after classes are recalls. Bars run from 0 to 1."),
        table(f"Trials of {board.name}, best first", _headers(board), rows, class_="board"),
        element("p", _curve_note(board), class_="muted small"),
    )


def _metrics(board: Board) -> list[str]:
    recalls = [f"val/recall/{name}" for name in board.classes]
    return list(dict.fromkeys((board.sort, "val/macro_f1", "val/accuracy", *recalls)))


def _headers(board: Board) -> list[object]:
    def metric(key: str) -> Html:
        label = key.removeprefix("val/recall/")
        name = words(label) if key not in (label, board.sort) else metric_words(key)
        tag = element("span", "watched", class_="tag") if label == board.watched_class else None
        current = "ascending" if lower_is_better(key) else "descending"
        return element(
            "th",
            join((_breakable(name), " ", tag)),
            scope="col",
            class_="metric",
            aria_sort=current if key == board.sort else None,
        )

    def left(text: str) -> Html:
        return element("th", text, scope="col", class_="text")

    parameters = [element("th", _breakable(name), scope="col", title=key) for key, name in _parameters(board)]
    return [
        "trial" if board.kind == "tuning" else "run",
        left("status"),
        *(metric(key) for key in _metrics(board)),
        left(f"{metric_words(board.metric)} by epoch"),
        "epochs",
        "time",
        *parameters,
    ]


def _parameters(board: Board) -> list[tuple[str, str]]:
    return list(zip(board.varying, short_names(board.varying, taken=board.classes), strict=True))


def _board_row(board: Board, place: int, row: Row) -> list[object]:
    rank = NOTHING if row.score(board.sort) is None else place
    status = element("td", row.status, class_="text muted", title=row.reason or None)
    curve = element("td", _sparkline(board, row), class_="text")
    name = element("span", row.trial, class_="mono lead" if row is board.best else "mono")
    return [
        join((element("span", rank, class_="rank"), name)),
        status,
        *(_score_cell(board, row, key) for key in _metrics(board)),
        curve,
        epochs_text(row),
        duration_text(row.seconds),
        *(parameter_text(row, key) for key, _ in _parameters(board)),
    ]


def _score_cell(board: Board, row: Row, key: str) -> Html:
    value = row.score(key)
    classes = "metric sorted" if key == board.sort else "metric"
    if value is None or lower_is_better(key):
        return element("td", score_text(value), class_=classes)
    return element("td", score_text(value), class_=f"{classes} bar", style=f"--share:{value:.1%}")


def _sparkline(board: Board, row: Row) -> Html:
    """The run's metric epoch by epoch, on one scale for all trials."""
    low, high, epochs = _scale(board)
    points = [(epoch, value) for epoch, value in enumerate(row.curve, start=1) if math.isfinite(value)]
    if not points:
        return Html()

    def place(epoch: int, value: float) -> tuple[str, str]:
        across = (epoch - 1) / max(1, epochs - 1) * (_CURVE_WIDTH - 2 * _CURVE_EDGE) + _CURVE_EDGE
        up = (value - low) / ((high - low) or 1.0) * (_CURVE_HEIGHT - 2 * _CURVE_EDGE) + _CURVE_EDGE
        return f"{across:.1f}", f"{_CURVE_HEIGHT - up:.1f}"

    line = element("polyline", points=" ".join(",".join(place(*point)) for point in points))
    best = row.best_epoch or 1
    x, y = place(best, row.curve[best - 1])
    description = f"{metric_words(board.metric)} by epoch, best {score_text(row.score(board.metric))} at epoch {best}"
    return element(
        "svg",
        line,
        element("circle", cx=x, cy=y, r=2.4),
        viewBox=f"0 0 {_CURVE_WIDTH} {_CURVE_HEIGHT}",
        role="img",
        aria_label=description,
        class_="spark lead" if row is board.best else "spark",
    )


def _scale(board: Board) -> tuple[float, float, int]:
    """Lowest and highest value of all curves, and the longest curve's epochs."""
    values = [value for row in board.rows for value in row.curve if math.isfinite(value)]
    return min(values, default=0.0), max(values, default=1.0), max((len(row.curve) for row in board.rows), default=1)


def _curve_note(board: Board) -> str:
    low, high, epochs = _scale(board)
    if board.best is None:
        return ""
    return (
        f"The curves share one scale, {metric_words(board.metric)} {low:.2f} to {high:.2f} over "
        f"{counted(epochs, 'epoch')}; the dot is the best epoch."
    )


def _trouble(board: Board) -> Html:
    rows = [
        [element("th", element("span", row.trial, class_="mono"), scope="row"), element("td", row.status), row.reason]
        for row in board.rows
        if row.status in TROUBLE
    ]
    if not rows:
        return Html()
    headers = ["trial", *(element("th", text, scope="col", class_="text") for text in ("status", "reason"))]
    return section("In trouble", table("Trials in trouble and why", headers, rows, class_="trouble"))


def _about(board: Board) -> Html:
    dataset, best = board.dataset, board.best
    val = ", ".join(f"{words(name)} {count:,}" for name, count in dataset.counts.get("val", {}).items())
    rows: list[tuple[object, object]] = [
        ("run", element("code", board.location.uri)),
        ("dataset", join((dataset.name, " ", element("code", dataset.fingerprint[:_ID_LETTERS])))),
        ("validation images", f"{board.val_images:,}: {val}"),
        ("metric", metric_words(board.metric)),
    ]
    if best is not None and best.parameters:
        chosen = [join((element("code", key), f" {parameter_text(best, key)}")) for key in best.parameters]
        rows.append(("the leader's parameters", join(chosen, ", ")))
    rows.append(("as of", f"{now().replace('T', ' ')[:16]} UTC"))
    return section("About this run", facts(rows))


def _promote(board: Board) -> Html:
    if board.best is None:
        return Html()
    return section(
        "Promote the leader",
        element("p", "Makes a bundle of it: weights, calibration and model card in one folder."),
        element("code", promote_command(board), class_="command"),
    )


def _breakable(name: str) -> Html:
    """A name that a narrow header may break behind its dots and underscores, and inside its long words."""
    halved = re.sub(r"[^\W_]{10,}", lambda word: _halves(word[0]), name)
    return Html(re.sub(r"([._])", r"\1<wbr>", esc(halved)))


def _halves(word: str) -> str:
    middle = (len(word) + 1) // 2
    return f"{word[:middle]}\N{SOFT HYPHEN}{word[middle:]}"
