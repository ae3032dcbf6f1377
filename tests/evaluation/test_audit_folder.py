"""The audit's folder: a report for programs, a page for people, all or nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.data.audit import AuditReport
from cxr_ray.data.shards import write_shard
from cxr_ray.data.splitting import with_column
from cxr_ray.data.store import Dataset
from cxr_ray.errors import DataError
from cxr_ray.evaluation.audit import audit


@pytest.fixture(scope="module")
def copied(phantoms: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Phantoms of which a training film and a test film show the same, under different labels."""
    root = tmp_path_factory.mktemp("copied")
    pixels = np.stack([phantoms.pixels[row] for row in range(len(phantoms.pixels))])
    labels = np.array(phantoms.column("label"))
    first = int(phantoms.rows("train")[0])
    second = next(row for row in phantoms.rows("test").tolist() if labels[row] != labels[first])
    pixels[second] = pixels[first]
    flags = [["tinted"] if row < 3 else [] for row in range(len(pixels))]
    info = phantoms.info.model_copy(update={"shards": [write_shard(root, "pixels.npy", pixels)]})
    manifest = with_column(phantoms.manifest, "quality_flags", flags)
    return dataclasses.replace(phantoms, root=root, info=info, manifest=manifest)


@pytest.fixture(scope="module")
def report(copied: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditReport, Path]:
    out = tmp_path_factory.mktemp("audit") / "report"
    return audit(copied, out, quiet=True), out


def test_a_copy_in_another_split_and_class_is_counted_as_both(report):
    duplicates = report[0].duplicates
    assert (duplicates.pairs, duplicates.groups, duplicates.images) == (1, 1, 2)
    assert duplicates.across == {"train and test": 1}
    assert (duplicates.across_labels, duplicates.not_grouped) == (1, 1)
    assert duplicates.listed[0].correlation == 1


def test_the_report_reads_back_as_what_was_returned(report):
    returned, out = report
    assert AuditReport.model_validate_json((out / "report.json").read_text()) == returned


def test_the_page_says_the_findings_and_shows_the_pair(report):
    returned, out = report
    page = (out / "index.html").read_text()
    assert len(returned.findings) >= 3
    for words in ("show the same under different labels", "3 tinted", "one source"):
        assert words in page
    for film in (returned.duplicates.listed[0].first, returned.duplicates.listed[0].second):
        assert film.path in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_each_flag_has_a_contact_sheet(report):
    assert [path.name for path in report[1].glob("flag-*.png")] == ["flag-tinted.png"]


def test_a_report_is_not_replaced_unless_that_is_asked_for(copied, report):
    out = report[1]
    with pytest.raises(DataError, match="overwrite"):
        audit(copied, out, quiet=True)
    assert audit(copied, out, overwrite=True, quiet=True) == report[0]


def test_a_folder_of_other_things_is_never_replaced(copied, tmp_path):
    (tmp_path / "thesis.txt").write_text("five years of work")
    with pytest.raises(DataError):
        audit(copied, tmp_path, overwrite=True, quiet=True)
    assert (tmp_path / "thesis.txt").read_text() == "five years of work"
