"""Audit a dataset and write down what was found: `report.json`, a page, and a contact sheet of each quality flag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import ValidationError

from cxr_ray.data.audit import AuditReport, audit_dataset
from cxr_ray.data.contact_sheet import contact_sheet
from cxr_ray.data.mapping import Mapper
from cxr_ray.data.quality_flags import FLAGS
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.evaluation.audit_page import PAIRS_SHOWN, audit_page
from cxr_ray.evaluation.folder import free_folder, whole_folder
from cxr_ray.progress import progress

REPORT_FILE, PAGE_FILE = "report.json", "index.html"
CONTENTS = frozenset({REPORT_FILE, PAGE_FILE, *(f"flag-{flag}.png" for flag in FLAGS)})
_SHEET_FILMS = 60


def audit(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    overwrite: bool = False,
    map: Mapper = map,
    quiet: bool = False,
) -> AuditReport:
    """Audit a dataset: leakage, duplicates, confounding of source and label, quality.

    Args:
        data: The dataset, local or a URI.
        out: The report's folder, local or a URI.
        overwrite: Replace a former audit in `out`.
        map: Runs the search for duplicates in parallel, in order (`cxr_ray.cluster.parallel_map`).
        quiet: No progress display.

    Returns:
        The content of `report.json`.

    Raises:
        DataError: There is no dataset, or `out` is taken.
    """
    folder = free_folder(out, marker=REPORT_FILE, contents=_former_contents, overwrite=overwrite)
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    with whole_folder(folder, marker=REPORT_FILE) as partial, progress("Auditing", 3, quiet=quiet) as line:
        report = audit_dataset(dataset, map=map)
        line.advance(2)
        sheets = {flag: sheet for flag in report.quality_flags if (sheet := flag_sheet(dataset, flag)) is not None}
        for flag, sheet in sheets.items():
            sheet.save(partial / f"flag-{flag}.png")
        shown = report.duplicates.listed[:PAIRS_SHOWN]
        films = {film.row: np.array(dataset.pixels[film.row]) for pair in shown for film in (pair.first, pair.second)}
        (partial / PAGE_FILE).write_text(audit_page(report, films, sheets))
        (partial / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n")
        line.advance()
    return report


def flag_sheet(dataset: Dataset, flag: str, films: int = _SHEET_FILMS) -> Image.Image | None:
    """The films that carry a quality flag on one picture, at most `films` of them, evenly drawn; None without any."""
    rows = [row for row, flags in enumerate(dataset.column("quality_flags")) if flag in (flags or ())]
    if not rows:
        return None
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(films, len(rows))).round().astype(int)]
    labels, sources = dataset.column("label"), dataset.column("source")
    captions = [f"{labels[row]}\n{sources[row]}" for row in rows]
    return contact_sheet([np.array(dataset.pixels[row]) for row in rows], captions)


def _former_contents(report: bytes) -> frozenset[str]:
    try:
        AuditReport.model_validate_json(report)
    except ValidationError:
        return frozenset()
    return CONTENTS
