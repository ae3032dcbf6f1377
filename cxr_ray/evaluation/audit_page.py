"""The page of an audit: why, or why not, numbers from this dataset can be believed."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from cxr_ray.data.audit import AuditReport, Pair
from cxr_ray.data.duplicate_confirmation import CONFIRMED
from cxr_ray.data.quality_flags import Threshold
from cxr_ray.data.source_probe import CUES, Probe
from cxr_ray.html import Html, data_uri, element, facts, figures, join, page, section, table, words

PAIRS_SHOWN = 24
_NOTHING = "–"
_STYLE = """
.probe td:nth-child(n+2){min-width:clamp(6.5rem,18vw,9rem)}
.meter{display:block;position:relative;height:.45rem;margin-top:.3rem;border-radius:.25rem;background:var(--line)}
.meter i{position:absolute;inset:0 auto 0 0;width:calc(100%*var(--value));border-radius:.25rem;background:var(--accent)}
.meter b{position:absolute;top:-.15rem;bottom:-.15rem;left:calc(100%*var(--chance));width:2px;background:var(--error)}
.share{background:rgb(var(--accent-rgb) / calc(.6*var(--part)))}
.sheet{display:block;width:100%;height:auto;margin:.8rem 0;border-radius:.45rem}
"""


def audit_page(report: AuditReport, films: Mapping[int, np.ndarray], sheets: Mapping[str, Image.Image]) -> str:
    """The page as one self-contained HTML file.

    Args:
        report: What the audit found.
        films: uint8, (S, S), by row: both films of every pair to show.
        sheets: A contact sheet of the films that carry a quality flag, by flag.
    """
    parts = (
        _headline(report),
        _findings(report),
        _leakage(report),
        _duplicates(report, films),
        _sources(report),
        _probes(report),
        _counts(report),
        _quality(report, sheets),
        _sets(report),
        _footer(),
    )
    return page(f"Audit of {report.dataset}", join(parts), style=_STYLE)


def _headline(report: AuditReport) -> Html:
    duplicates = report.duplicates
    told = [probe for probe in report.probes if (probe.target, probe.cue) == ("label", "frame")]
    association = _NOTHING if report.cramers_v is None else f"{report.cramers_v:.2f}"
    leaking = sum(report.leaks.values())
    return element(
        "header",
        element("p", "Audit of a dataset", class_="eyebrow"),
        element("h1", report.dataset),
        element(
            "p",
            f"{report.images:,} films, {len(report.classes)} classes, {len(report.sources)} source(s).",
            class_="lede",
        ),
        figures(
            [
                (f"{leaking:,}", "leaks", "patients or films in more than one split"),
                (f"{duplicates.images:,}", "films that occur twice", f"{duplicates.groups:,} films in all"),
                (association, "source and label", "Cramér's V: 0 independent, 1 the same"),
                *(
                    (
                        f"{probe.balanced_accuracy:.2f}",
                        "label told from the frame",
                        f"border, size, tint; guessing: {probe.chance:.2f}",
                    )
                    for probe in told
                ),
            ]
        ),
    )


def _findings(report: AuditReport) -> Html:
    if not report.findings:
        return element("p", "Nothing was found that would make numbers from this dataset untrustworthy.")
    items = (element("li", text) for text in report.findings)
    return element("div", element("b", "Before you use this dataset"), element("ul", *items), class_="callout alarm")


def _leakage(report: AuditReport) -> Html:
    if not report.leaks:
        text = "No patient and no film lies in more than one split."
        return section("Leakage", element("p", text))
    counts = " and ".join(f"{count:,} {kind}(s)" for kind, count in report.leaks.items())
    return section(
        "Leakage",
        element("p", f"{counts} lie in more than one split, so a network meets in the test what it was trained on."),
        element("ul", *(element("li", text) for text in report.leak_examples)),
    )


def _duplicates(report: AuditReport, films: Mapping[int, np.ndarray]) -> Html:
    found = report.duplicates
    if not found.pairs:
        return section("Duplicates", element("p", "No film was found that shows the same as another."))
    rows = [(where, f"{count:,}") for where, count in found.across.items()]
    shown = [pair for pair in found.listed if pair.first.row in films]
    return section(
        "Duplicates",
        element(
            "p",
            f"{found.groups:,} films occur more than once, {found.images:,} images in all. A pair counts when its "
            f"films, aligned, correlate in their detail at {CONFIRMED} or more. "
            f"{found.across_labels:,} of {found.pairs:,} pairs stand under different labels and "
            f"{found.across_sources:,} come from different sources. Within one split a duplicate does no harm but "
            "count twice.",
        ),
        table("Pairs by the splits they lie in", ["splits", "pairs"], rows),
        element("h3", "Those that matter most" if len(shown) < found.pairs else "All of them"),
        element("div", *(_pair(pair, films) for pair in shown), class_="films"),
    )


def _pair(pair: Pair, films: Mapping[int, np.ndarray]) -> Html:
    pictures = (
        element("img", src=_webp(films[film.row]), alt=f"{words(film.label)} from {film.source}")
        for film in (pair.first, pair.second)
    )
    lines: list[Html] = []
    for film in (pair.first, pair.second):
        lines += [
            element("br"),
            join((f"{words(film.label)}, {film.source}, {film.split}: ", element("code", film.path))),
        ]
    return element(
        "figure",
        element("div", *pictures, class_="pair"),
        element("figcaption", element("b", f"correlation {pair.correlation:.3f}"), *lines),
    )


def _sources(report: AuditReport) -> Html:
    totals = {name: sum(counts[name] for counts in report.sources.values()) for name in report.classes}
    rows = []
    for source, counts in report.sources.items():
        cells = [
            element(
                "td", f"{count:,}" if count else _NOTHING, class_="share", style=f"--part:{count / totals[name]:.3f}"
            )
            if totals[name]
            else element("td", _NOTHING)
            for name, count in counts.items()
        ]
        rows.append((source, *cells, f"{sum(counts.values()):,}"))
    footer = [("all", *(f"{total:,}" for total in totals.values()), f"{report.images:,}")]
    single = [f"{words(name)} ({source})" for name, source in report.single_source_classes.items()]
    lonely = (
        element("p", f"Cannot be assessed across sources, coming from one only: {', '.join(single)}.") if single else ""
    )
    strength = "" if report.cramers_v is None else f" Cramér's V is {report.cramers_v:.2f}."
    return section(
        "Source and label",
        element(
            "p",
            "Colour shows the share of a class that a source holds. Where one source holds nearly all of a class, a "
            f"network need only recognise the hospital.{strength}",
        ),
        table(
            "Films by source and class",
            ["source", *(words(name) for name in report.classes), "all"],
            rows,
            footer=footer,
        ),
        lonely,
    )


def _probes(report: AuditReport) -> Html:
    if not report.probes:
        text = "There are too few films, or only one source and class, to probe."
        return section("What is told without reading a lung", element("p", text))
    by_cue = {(probe.cue, probe.target): probe for probe in report.probes}
    targets = list(dict.fromkeys(probe.target for probe in report.probes))
    rows = [(text, *(_meter(by_cue.get((cue, target))) for target in targets)) for cue, text in CUES.items()]
    return section(
        "What is told without reading a lung",
        element(
            "p",
            "Simple classifiers were asked for label and source, cross-validated with patients and duplicates kept "
            "together, seeing only what the row names. Balanced accuracy; the mark is guessing. What they reach "
            "without seeing a lung, a network can reach without medicine.",
        ),
        table("Balanced accuracy of probes", ["seeing only", *targets], rows, class_="probe wrap"),
    )


def _meter(probe: Probe | None) -> Html:
    if probe is None:
        return element("td", _NOTHING)
    style = f"--value:{probe.balanced_accuracy:.3f};--chance:{probe.chance:.3f}"
    return element(
        "td",
        f"{probe.balanced_accuracy:.2f} ± {probe.spread:.2f}",
        element("span", element("i"), element("b"), class_="meter", style=style),
    )


def _counts(report: AuditReport) -> Html:
    tables = [_count_table("class", report.counts)]
    tables += [
        _count_table(name, counts)
        for name, counts in (("sex", report.sex), ("age", report.age), ("view", report.view))
        if any(set(row) - {"unknown"} for row in counts.values())
    ]
    unknown = [
        name
        for name, counts in (("sex", report.sex), ("age", report.age), ("view", report.view))
        if not any(set(row) - {"unknown"} for row in counts.values())
    ]
    note = element("p", f"Not known of any film: {', '.join(unknown)}.", class_="muted") if unknown else ""
    return section("Who is in which split", *tables, note)


def _count_table(what: str, counts: dict[str, dict[str, int]]) -> Html:
    values = list(dict.fromkeys(value for row in counts.values() for value in row))
    if what != "class":
        values.sort(key=lambda value: (value == "unknown", len(value) > 5, value))
    rows = [
        (split, *(f"{row.get(value, 0):,}" for value in values), f"{sum(row.values()):,}")
        for split, row in counts.items()
    ]
    return table(f"Films by split and {what}", [f"split, by {what}", *(words(value) for value in values), "all"], rows)


def _quality(report: AuditReport, sheets: Mapping[str, Image.Image]) -> Html:
    rows = [
        (
            words(flag),
            f"{report.quality_flags.get(flag, 0):,}",
            element("td", _limit(limit), class_="text muted"),
        )
        for flag, limit in report.thresholds.items()
    ]
    pictures = (
        element(
            "details",
            element("summary", f"Show films flagged {words(flag)}"),
            element("img", src=_sheet(sheet), alt=f"films flagged {words(flag)}", class_="sheet"),
        )
        for flag, sheet in sheets.items()
    )
    return section(
        "Quality",
        element(
            "p",
            "A flag is a reason to look, not a verdict. Limits follow the dataset's own films. Leave flagged films out "
            "of training with --exclude-flags.",
        ),
        table(
            "Films by quality flag",
            ["flag", "films", element("th", "which films", scope="col", class_="text")],
            rows,
            class_="wrap",
        )
        if rows
        else element("p", "Quality was not measured for this dataset."),
        *pictures,
    )


def _limit(limit: Threshold) -> str:
    return (
        f"{limit.measure.replace('_', ' ')} {limit.direction} {limit.value:.3g} "
        f"({limit.found_by}; the dataset's median is {limit.median:.3g})"
    )


def _sets(report: AuditReport) -> Html:
    parts = [
        join(
            (
                element("h3", known.title),
                facts(
                    [
                        ("published at", element("code", known.page)),
                        ("licence", known.licence),
                        ("population", known.population),
                        ("films from", "; ".join(known.sources)),
                    ]
                ),
                element("ul", *(element("li", text) for text in known.defects)),
            )
        )
        for known in report.sets
    ]
    warnings = element("ul", *(element("li", text) for text in report.warnings)) if report.warnings else ""
    if not parts and not warnings:
        return Html()
    told = (element("h3", "Warnings of the import"), warnings) if warnings else ()
    return section("What is known of these films", *parts, *told)


def _footer() -> Html:
    return element(
        "footer",
        element("p", "Every number on this page, and the pairs that are not shown, are in report.json beside it."),
        class_="muted small",
    )


def _webp(pixels: np.ndarray) -> str:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "WEBP", quality=88)
    return data_uri(sink.getvalue(), "image/webp")


def _sheet(sheet: Image.Image) -> str:
    sink = io.BytesIO()
    sheet.save(sink, "WEBP", quality=80)
    return data_uri(sink.getvalue(), "image/webp")
