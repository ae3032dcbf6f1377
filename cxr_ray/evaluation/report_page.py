"""The page of an evaluation: what people read and show each other."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cxr_ray.evaluation.looks import UNKNOWN, Look, looks_sentence
from cxr_ray.evaluation.pictures import History, MistakePicture, best_epoch, inline_svg, loss_chart, score_chart
from cxr_ray.evaluation.report import Report
from cxr_ray.html import Html, data_uri, element, facts, figures, join, page, section, table, words

_NOTHING = "–"
_ID_LETTERS = 12  # of a sha256: enough to tell bundles apart, short enough to read out


def report_page(report: Report, history: History, pictures: Sequence[MistakePicture]) -> str:
    """The page as one self-contained HTML file.

    Args:
        report: What the evaluation found.
        history: One row an epoch of the training run; may be empty.
        pictures: The mistakes to show, in the report's order.
    """
    parts = (
        _headline(report),
        _warnings(report),
        _evaluated(report),
        _class_table(report),
        _confusion(report),
        _curves(history, report.bundle.watched_class),
        _mistakes(report, pictures),
        _footer(report),
    )
    return page(f"{report.bundle.name} on {report.dataset.name} ({report.split})", join(parts))


def _headline(report: Report) -> Html:
    watched = report.bundle.watched_class
    correct = sum(row[k] for k, row in enumerate(report.confusion.counts))
    n_watched = report.images.get(watched, 0)
    k = report.bundle.classes.index(watched) if watched in report.bundle.classes else None
    hits = report.confusion.counts[k][k] if k is not None else 0
    present = sum(n > 0 for n in report.images.values())
    recall_note = f"{hits} of {n_watched} found" if n_watched else "no such film in this split"
    lede = f"Evaluated on {report.n:,} {report.split} films of {report.dataset.name}."
    return element(
        "header",
        element("p", "Evaluation of a chest radiograph classifier", class_="eyebrow"),
        element("h1", report.bundle.name),
        element("p", lede, class_="lede"),
        figures(
            [
                (_score(report.metric("macro_f1")), "macro-F1", f"mean over {present} classes, n = {report.n:,}"),
                (_score(report.metric("accuracy")), "accuracy", f"{correct:,} of {report.n:,} correct"),
                (
                    _score(report.metrics.get(f"{report.split}/recall/{watched}")),
                    f"recall of {words(watched)}",
                    recall_note,
                ),
            ]
        ),
    )


def _warnings(report: Report) -> Html:
    if not report.warnings:
        return Html()
    items = (element("li", text) for text in report.warnings)
    return element("div", element("b", "Before you use these numbers"), element("ul", *items), class_="callout alarm")


def _evaluated(report: Report) -> Html:
    same = report.bundle.trained_on == report.dataset.fingerprint
    origin = "the dataset the bundle was trained on" if same else "not the dataset the bundle was trained on"
    looks = [look for look in report.looks if look.split == "test"]
    rows = [
        ("bundle", join((report.bundle.name, " ", _code(report.bundle.id[:_ID_LETTERS])))),
        ("experiment", _code(report.bundle.experiment_fingerprint) if report.bundle.experiment_fingerprint else None),
        ("dataset", join((report.dataset.name, " ", _code(report.dataset.fingerprint), ", ", origin))),
        ("split", f"{report.split}, {report.n:,} films"),
        ("looks at test so far", str(len(looks))),
        ("made", _time(report.created)),
    ]
    return section(
        "What was evaluated",
        facts((name, value) for name, value in rows if value is not None),
        element("p", looks_sentence(looks)),
        _looks_table(looks, report.bundle.id),
    )


def _looks_table(looks: Sequence[Look], this_bundle: str) -> Html:
    if not looks:
        return Html()
    rows = [
        (
            _time(look.time),
            join((_code(look.bundle[:_ID_LETTERS]), " ", _tag("this bundle") if look.bundle == this_bundle else None)),
            _code(look.experiment) if look.experiment else _NOTHING,
            f"{look.images:,}",
        )
        for look in looks
    ]
    listing = table("Looks at the test split", ["time", "bundle", "experiment", "films"], rows)
    title = "the one look" if len(looks) == 1 else f"all {len(looks)} looks"
    return element("details", element("summary", f"Show {title}"), listing)


def _class_table(report: Report) -> Html:
    rows = []
    for k, name in enumerate(report.bundle.classes):
        watched = _tag("watched") if name == report.bundle.watched_class else None
        scores = (_score(report.metric(f"{kind}/{name}")) for kind in ("precision", "recall", "f1"))
        confused = element("td", _most_confused(report, k), class_="text muted")
        rows.append((join((words(name), " ", watched)), f"{report.images[name]:,}", *scores, confused))
    macro = (_score(report.metric(key)) for key in ("macro_precision", "macro_recall", "macro_f1"))
    return section(
        "By class",
        table(
            "Precision, recall and F1 by class",
            [
                "class",
                "films",
                "precision",
                "recall",
                "F1",
                element("th", "most often taken for", scope="col", class_="text"),
            ],
            rows,
            footer=[("mean", f"{report.n:,}", *macro, element("td", class_="text"))],
            class_="wrap",
        ),
        element(
            "p",
            "Precision: of the films given this label by the bundle, the share that has it. Recall: of the films that "
            "have it, the share the bundle found. F1 is their harmonic mean; the mean counts every class alike, "
            "however many films it has.",
            class_="muted small",
        ),
    )


def _most_confused(report: Report, k: int) -> str:
    row = report.confusion.counts[k]
    others = [(count, j) for j, count in enumerate(row) if j != k and count]
    if not others:
        return _NOTHING
    count, j = max(others, key=lambda pair: (pair[0], -pair[1]))
    return f"{words(report.bundle.classes[j])} ({count})"


def _confusion(report: Report) -> Html:
    classes = report.bundle.classes
    rows = []
    for k, (name, counts) in enumerate(zip(classes, report.confusion.counts, strict=True)):
        shares = report.confusion.row_shares[k]
        if shares is None:
            rows.append((words(name), *(element("td", _NOTHING, class_="none") for _ in classes)))
            continue
        cells = [
            _confusion_cell(count, share, j == k) for j, (count, share) in enumerate(zip(counts, shares, strict=True))
        ]
        rows.append((words(name), *cells))
    corner = join(element("span", text, class_="axis") for text in ("prediction →", "label ↓"))
    caption = "Confusion matrix: films by label (row) and prediction (column)"
    return section(
        "Confusion matrix",
        element(
            "p",
            "Each row is a label, each column what the bundle said. Shares are of the row, so the diagonal is recall.",
        ),
        table(caption, [corner, *(words(name) for name in classes)], rows, class_="matrix wrap"),
    )


def _confusion_cell(count: int, share: float, right: bool) -> Html:
    if not count:
        return element("td", "0", class_="none")
    kind = "right" if right else "wrong"
    return element(
        "td", element("b", f"{count:,}"), element("span", f"{share:.0%}"), class_=kind, style=f"--share:{share:.3f}"
    )


def _curves(history: History, watched: str) -> Html:
    if not history:
        return section("Learning curves", element("p", "The bundle holds no training history."))
    best = best_epoch(history)
    kept = f" The bundle holds the weights of epoch {best['epoch']}." if best else ""
    charts = (
        inline_svg(loss_chart(history), "Training and validation loss by epoch"),
        inline_svg(score_chart(history, watched), "Macro-F1 on the validation split by epoch"),
    )
    return section(
        "Learning curves",
        element(
            "p",
            f"Training ran for {len(history)} {'epoch' if len(history) == 1 else 'epochs'}.{kept} The training loss is "
            "measured on augmented films and may weigh classes; compare its course with the validation loss, not its "
            "height.",
        ),
        element("div", *charts, class_="charts"),
    )


def _mistakes(report: Report, pictures: Sequence[MistakePicture]) -> Html:
    groups = [_mistakes_of(report, name, pictures) for name in report.bundle.classes]
    return section(
        "Mistakes",
        element(
            "p",
            "Drawn at random from each class's mistakes, the most confident first. Left the film as the network saw "
            "it; right the evidence for the class it was taken for, brightest where it is strongest. Each heatmap is "
            "scaled to its own brightest place, so films cannot be compared by brightness.",
        ),
        *groups,
    )


def _mistakes_of(report: Report, name: str, pictures: Sequence[MistakePicture]) -> Html:
    n, wrong = report.images[name], sum(mistake.label == name for mistake in report.mistakes)
    shown = [picture for picture in pictures if picture.mistake.label == name]
    if not n:
        text = "There is no film of this class in the split."
    elif not wrong:
        text = f"No mistakes: all {n:,} films were recognised."
    elif len(shown) == wrong:
        text = f"{wrong:,} of {n:,} films wrong, all of them shown."
    else:
        text = f"{wrong:,} of {n:,} films wrong, {len(shown)} of them shown."
    films = element("div", *(_film(picture) for picture in shown), class_="films") if shown else None
    return join((element("h3", words(name)), element("p", text, class_="muted"), films))


def _film(picture: MistakePicture) -> Html:
    mistake = picture.mistake
    label, predicted = words(mistake.label), words(mistake.predicted)
    p_label, p_predicted = mistake.probabilities[mistake.label], mistake.probabilities[mistake.predicted]
    return element(
        "figure",
        element(
            "div",
            element("img", src=_webp(picture.film), alt=f"film labelled {label}"),
            element("img", src=_webp(picture.overlay), alt=f"evidence for {predicted}"),
            class_="pair",
        ),
        element(
            "figcaption",
            element("b", f"{label} → {predicted} {p_predicted:.2f}"),
            f", {label} {p_label:.2f}" + ("" if picture.supported else "; no evidence for it above zero"),
            element("br"),
            _code(mistake.path),
        ),
    )


def _footer(report: Report) -> Html:
    return element(
        "footer",
        element(
            "p",
            element("b", "For research use. Not a medical device."),
            " No diagnosis or treatment may rest on "
            "these answers or heatmaps. A heatmap shows what the network's answer rests on, not where a disease "
            "is.",
        ),
        element(
            "p",
            "Every mistake, every probability and every number on this page is in report.json beside it.",
            class_="muted small",
        ),
    )


def _webp(pixels: np.ndarray) -> str:
    """A film or an overlay, uint8, for the page: a tenth of a PNG, with no loss an eye could find."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "WEBP", quality=88)
    return data_uri(sink.getvalue(), "image/webp")


def _score(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f}"


def _time(text: str) -> str:
    return text if text == UNKNOWN else f"{text[:10]} {text[11:16]} UTC"


def _tag(text: str) -> Html:
    return element("span", text, class_="tag")


def _code(text: str | None) -> Html:
    return element("code", text)
