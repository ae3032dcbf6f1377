"""The COVID-19 image data collection of Cohen et al.: one metadata sheet, licences film by film."""

from __future__ import annotations

import re
from collections import Counter

from cxr_ray.data.listing import Listing, SetFacts, SourceFile
from cxr_ray.data.readers.common import Row, film_paths, find_file, not_this_set, number, sheet_rows, value
from cxr_ray.paths import Location

_FRONTAL = frozenset({"PA", "AP", "APS", "AP SUPINE", "AP SEMI ERECT", "AP ERECT"})
_KEPT = ("offset", "location", "RT_PCR_positive", "survival", "date", "url", "doi")

FACTS = SetFacts(
    name="cohen",
    title="COVID-19 image data collection (Cohen, Morrison, Dao 2020)",
    page="https://github.com/ieee8023/covid-chestxray-dataset",
    licence="film by film, in the column license, such as CC BY-NC-SA; empty where unknown",
    population="mixed",
    sources=["figures of publications", "Radiopaedia", "Eurorad", "SIRM", "hospitals"],
    defects=[
        "Most films are figures of publications: cropped, re-encoded, some with arrows or letters drawn on.",
        "Few films are normal (15 of 535 frontal ones in one version): they must come from elsewhere, and then the "
        "source tells the class.",
        "Several films of one patient are the rule; patients are recorded.",
        "Films were published because they are remarkable: severity is not that of a clinic.",
    ],
)


def read_cohen(src: Location) -> Listing:
    """List the frontal X-rays with a finding that is one of ours; the others are set aside with the reason.

    Raises:
        DataError: There is no ``metadata.csv`` with the columns filename and finding.
    """
    paths = [entry.path for entry in src.walk()]
    sheet = find_file(paths, r"metadata\.csv")
    rows = sheet_rows(src.child(sheet)) if sheet else []
    if not sheet or not rows or not any({"filename", "finding"} <= set(row) for row in rows):
        raise not_this_set(
            src, "cohen", "metadata.csv with the columns filename and finding, and a folder images", paths
        )
    base = sheet.rpartition("/")[0]
    films = set(film_paths(src))
    by_name = {path.rpartition("/")[2]: path for path in sorted(films, reverse=True)}
    files: dict[str, SourceFile] = {}
    set_aside, missing = [], 0
    for row in rows:
        name = value(row, "filename")
        if not name:
            continue
        listed = "/".join(part for part in (base, value(row, "folder") or "images", name) if part)
        path = listed if listed in films else by_name.get(name, listed)
        if reason := _unwanted(row):
            set_aside.append({"path": path, "reason": reason})
        elif path not in films:
            missing += 1
        else:
            files[path] = _film(path, row)
    notes = [f"{missing} film(s) of metadata.csv are not in the folder"] if missing else []
    counts = Counter(entry["reason"] for entry in set_aside)
    notes += [f"{count} film(s) set aside: {reason}" for reason, count in counts.most_common(5)]
    return Listing(list(files.values()), notes, set_aside, FACTS)


def finding_label(finding: str | None) -> str | None:
    """The class of a finding, written as a path (``Pneumonia/Viral/COVID-19``) or as words; None for none of ours.

    Bacterial, fungal and other pneumonia are lung opacity, as in the set 'kermany'.
    """
    words = (finding or "").lower()
    if re.search(r"covid|sars-cov-2", words):
        return "covid"
    if "tuberculosis" in words:
        return "tuberculosis"
    if re.search(r"viral|sars|mers|influenza|varicella|h1n1|herpes", words):
        return "viral_pneumonia"
    if "pneumonia" in words or re.search(r"streptococcus|klebsiella|legionella|pneumocystis|e\.?coli", words):
        return "lung_opacity"
    return "normal" if words.strip() in ("no finding", "normal") else None


def _unwanted(row: Row) -> str | None:
    modality, view = value(row, "modality") or "X-ray", value(row, "view")
    if "x-ray" not in modality.lower() and modality.upper() not in ("CR", "DX"):
        return f"is no X-ray ({modality})"
    if view is None or re.sub(r"[^A-Z]+", " ", view.upper()).strip() not in _FRONTAL:
        return f"is not known to be a frontal view ({view or 'none given'})"
    finding = value(row, "finding")
    return None if finding_label(finding) else f"has a finding that is no class here ({finding or 'none given'})"


def _film(path: str, row: Row) -> SourceFile:
    extra = {f"extra.{name.lower()}": text for name in _KEPT if (text := value(row, name))}
    if licence := value(row, "license", "licence"):
        extra["extra.licence"] = licence
    patient = value(row, "patientid")
    return SourceFile(
        path,
        finding_label(value(row, "finding")) or "",
        source="cohen",
        patient_id=f"cohen-{patient}" if patient else None,
        view=value(row, "view"),
        sex=value(row, "sex"),
        age=number(value(row, "age")),
        extra=extra,
    )
