"""Pictures of an evaluation and of explanations; matplotlib without its global state."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxr_ray.evaluation.report import Confusion, Mistake
from cxr_ray.html import LIGHT, Html, themed_svg, words

_DOTS_PER_INCH = 160
_SHADES = LinearSegmentedColormap.from_list("shares", ["#ffffff", LIGHT["accent"]])
_PAIRS_A_ROW = 5
_PANELS_A_ROW = 6  # the film and the five standard classes

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class MistakePicture:
    """A mistake to look at.

    Attributes:
        mistake: What was decided.
        film: uint8, (S, S): what the network saw.
        overlay: uint8 RGB, (S, S, 3): the film with the heatmap of the predicted class.
        supported: Whether any place of the film speaks for that class; if not, the overlay is the plain film.
    """

    mistake: Mistake
    film: np.ndarray
    overlay: np.ndarray
    supported: bool


@dataclass(frozen=True)
class ClassPicture:
    """The evidence for one class as a picture.

    Attributes:
        class_name: The class.
        probability: Calibrated, 0 to 1.
        supported: Whether any place of the film speaks for it.
        overlay: uint8 RGB, (S, S, 3).
    """

    class_name: str
    probability: float
    supported: bool
    overlay: np.ndarray


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # A file name may hold letters that matplotlib's font lacks; it then shows boxes, which is no error.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasAgg(figure).print_png(sink, metadata={"Software": None})
    return sink.getvalue()


def inline_svg(figure: Figure, description: str) -> Html:
    """A figure drawn in `LIGHT` colours as part of a page, in the page's colours and font."""
    sink = io.StringIO()
    # Text stays text; the salt makes the drawing's inner names its own, and the same in every run.
    figure.set_facecolor("none")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        FigureCanvasSVG(figure).print_svg(sink, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return themed_svg(sink.getvalue(), description)


def confusion_picture(confusion: Confusion) -> Figure:
    """The confusion matrix as a picture: counts, and shares of the row as shades."""
    classes = [words(name) for name in confusion.classes]
    edge = 1.15 * len(classes)
    figure = _figure(edge + 2.2, edge + 1.6)
    axes = figure.add_subplot()
    shares = np.array([row or [0.0] * len(classes) for row in confusion.row_shares])
    axes.imshow(shares, cmap=_SHADES, vmin=0, vmax=1)
    for i, row in enumerate(confusion.counts):
        for j, count in enumerate(row):
            share = confusion.row_shares[i]
            text = "–" if share is None else f"{count}\n{share[j]:.0%}"
            colour = "white" if shares[i, j] > 0.55 else LIGHT["ink"] if count else LIGHT["muted"]
            weight = "bold" if i == j else "normal"
            axes.text(j, i, text, ha="center", va="center", color=colour, weight=weight, linespacing=1.35)
    ticks = range(len(classes))
    axes.set_xticks(ticks, [_wrap(name) for name in classes], parse_math=False)
    axes.set_yticks(ticks, [_wrap(name) for name in classes], parse_math=False)
    axes.set_xlabel("prediction", labelpad=10, color=LIGHT["muted"])
    axes.set_ylabel("label", labelpad=10, color=LIGHT["muted"])
    axes.tick_params(length=0, top=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(classes) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    axes.tick_params(which="minor", length=0)
    return figure


def curves_picture(history: History, watched_class: str) -> Figure:
    """Losses, and validation scores, side by side."""
    figure = _figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    _draw_losses(left, history)
    _draw_scores(right, history, watched_class)
    return figure


def loss_chart(history: History) -> Figure:
    """The losses alone, to stand in a page."""
    figure = _figure(4.8, 3.1)
    _draw_losses(figure.add_subplot(), history)
    return figure


def score_chart(history: History, watched_class: str) -> Figure:
    """The validation scores alone, to stand in a page."""
    figure = _figure(4.8, 3.1)
    _draw_scores(figure.add_subplot(), history, watched_class)
    return figure


def best_epoch(history: History) -> Mapping[str, Any] | None:
    """The epoch whose weights the bundle holds: the last that was better than all before it."""
    return next((row for row in reversed(history) if row.get("best")), None)


def mistakes_picture(pictures: Sequence[MistakePicture], label: str) -> Figure:
    """Mistakes of one class: each film beside its heatmap, five pairs a row."""
    columns = min(_PAIRS_A_ROW, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = _figure(max(4.0, columns * 2.7), rows * 1.62 + 0.5)
    figure.suptitle(
        f"label: {words(label)}", x=0.1 / figure.get_figwidth(), ha="left", size=12, weight="bold", parse_math=False
    )
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    for cell, picture in zip(cells, pictures, strict=False):
        mistake = picture.mistake
        gray = np.repeat(picture.film[:, :, None], 3, axis=2)
        gap = np.full((gray.shape[0], max(1, gray.shape[0] // 60), 3), 255, np.uint8)
        cell.imshow(np.hstack([gray, gap, picture.overlay]), interpolation="bilinear")
        text = f"→ {words(mistake.predicted)} {mistake.probabilities[mistake.predicted]:.2f}"
        cell.set_title(text, size=9, loc="left", parse_math=False)
    return figure


def contact_picture(
    film: np.ndarray, title: str, panels: Sequence[ClassPicture], predicted: str, probabilities: Mapping[str, float]
) -> Figure:
    """A film and its class overlays side by side, the predicted class marked.

    Args:
        film: uint8, (S, S).
        title: The film's name.
        panels: One a class.
        predicted: The class decided for.
        probabilities: By class.
    """
    columns = min(_PANELS_A_ROW, 1 + len(panels))
    rows = math.ceil((1 + len(panels)) / columns)
    figure = _figure(columns * 2.3, rows * 2.85 + 0.3)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells:
        cell.set_xticks([])
        cell.set_yticks([])
        cell.spines[:].set_visible(False)
    cells[0].imshow(film, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    _title(cells[0], _shorten(title, 22), f"{words(predicted)} {probabilities[predicted]:.2f}")
    for cell, panel in zip(cells[1:], panels, strict=False):
        cell.imshow(panel.overlay, interpolation="bilinear")
        chosen = panel.class_name == predicted
        note = "" if panel.supported else ", no evidence for it"
        _title(cell, f"{words(panel.class_name)} {panel.probability:.2f}", ("predicted" if chosen else "") + note)
        if chosen:
            cell.spines[:].set_visible(True)
            cell.spines[:].set(color=LIGHT["accent"], linewidth=3)
    figure.supxlabel(
        "Each heatmap is scaled to its own brightest place. For research use, not a medical device.",
        size=8,
        color=LIGHT["muted"],
    )
    return figure


def _title(axes: Axes, first: str, second: str) -> None:
    axes.set_title(first, loc="left", size=10, weight="bold", color=LIGHT["ink"], pad=20, parse_math=False)
    axes.text(
        0,
        1.025,
        second.removeprefix(", "),
        transform=axes.transAxes,
        size=9,
        color=LIGHT["muted"],
        va="bottom",
        parse_math=False,
    )


def _shorten(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters // 2]}…{text[-(letters // 2 - 1) :]}"


def _draw_losses(axes: Axes, history: History) -> None:
    _draw(axes, history, "train/loss", "training", LIGHT["muted"], "--")
    _draw(axes, history, "val/loss", "validation", LIGHT["accent"], "-")
    _finish(axes, history, "loss", "val/loss")


def _draw_scores(axes: Axes, history: History, watched_class: str) -> None:
    watched = f"recall of {words(watched_class)}"
    _draw(axes, history, f"val/recall/{watched_class}", watched, LIGHT["error"], "--")
    _draw(axes, history, "val/macro_f1", "macro-F1", LIGHT["accent"], "-")
    axes.set_ylim(0, 1.02)
    _finish(axes, history, "validation score", "val/macro_f1")


def _draw(axes: Axes, history: History, key: str, name: str, colour: str, style: str) -> None:
    points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
    if points:
        marker = "o" if len(points) == 1 else None
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=colour, linestyle=style, marker=marker, linewidth=1.8, label=name)


def _finish(axes: Axes, history: History, title: str, best_key: str) -> None:
    axes.set_title(title, loc="left", size=11, weight="bold", color=LIGHT["ink"], pad=26)
    axes.set_xlabel("epoch", color=LIGHT["muted"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_facecolor("none")
    axes.grid(axis="y", color=LIGHT["line"], linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["line"])
    axes.tick_params(length=0, colors=LIGHT["muted"])
    best = best_epoch(history)
    if best is not None and best.get(best_key) is not None:
        axes.plot([best["epoch"]], [best[best_key]], "o", color=LIGHT["accent"], markersize=6.5, label="kept epoch")
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=3,
            frameon=False,
            fontsize=9,
            handlelength=1.6,
            columnspacing=1.2,
            borderaxespad=0.1,
            labelcolor=LIGHT["muted"],
        )
        # It stands between title and axes; in the layout, a long class name would narrow the axes.
        legend.set_in_layout(False)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1, hspace=0.02, wspace=0.02)
    return figure


def _wrap(name: str) -> str:
    return name.replace(" ", "\n")
