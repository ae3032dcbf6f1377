"""Audits: what makes a dataset untrustworthy is measured and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from cxr_ray.data.audit import AuditReport, audit_dataset
from cxr_ray.data.phantom_dataset import make_phantoms
from cxr_ray.data.splitting import with_column
from cxr_ray.data.store import Dataset

CHANCE = 0.2  # of five classes


@pytest.fixture(scope="module")
def confounded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], AuditReport]:
    """The audit of 240 phantoms from four hospitals, by how much the class tells the hospital."""
    reports: dict[float, AuditReport] = {}

    def audited(confounding: float) -> AuditReport:
        if confounding not in reports:
            out = tmp_path_factory.mktemp("confounded") / "dataset"
            data = make_phantoms(out, images=240, size=64, sources=4, confounding=confounding, quiet=True)
            reports[confounding] = audit_dataset(data)
        return reports[confounding]

    return audited


def probed(report: AuditReport, target: str, cue: str) -> float:
    return next(probe.balanced_accuracy for probe in report.probes if (probe.target, probe.cue) == (target, cue))


def test_the_probe_of_the_label_rises_with_confounding(confounded):
    reached = [probed(confounded(strength), "label", "frame") for strength in (0.0, 0.5, 1.0)]
    assert reached[0] < CHANCE + 0.1
    assert reached[0] + 0.1 < reached[1] < reached[2] - 0.1
    assert reached[2] > 0.6


def test_the_association_of_source_and_label_rises_with_confounding(confounded):
    free, half, full = (confounded(strength).cramers_v for strength in (0.0, 0.5, 1.0))
    assert free < 0.2 < half < full
    assert full > 0.9


def test_the_probe_of_the_source_tells_hospitals_apart_whatever_the_classes(confounded):
    assert min(probed(confounded(strength), "source", "frame") for strength in (0.0, 1.0)) > 0.8


def test_confounding_is_found_and_its_absence_too(confounded):
    words = ("hang together", "without seeing a lung", "Cannot be assessed across sources")
    free, full = " ".join(confounded(0.0).findings), " ".join(confounded(1.0).findings)
    assert [word in full for word in words] == [True] * 3
    assert [word in free for word in words] == [False] * 3


def test_classes_from_one_source_are_named_with_it(confounded):
    report = confounded(1.0)
    assert sorted(report.single_source_classes) == sorted(report.classes)
    for name, source in report.single_source_classes.items():
        assert [place for place, counts in report.sources.items() if counts[name]] == [source]


def test_counts_by_split_add_up_to_the_films(phantoms: Dataset):
    report = audit_dataset(phantoms)
    for table in (report.counts, report.sex, report.age, report.view):
        assert sum(sum(counts.values()) for counts in table.values()) == report.images == 60


def test_a_patient_in_two_splits_is_named(phantoms: Dataset):
    splits = phantoms.column("split")
    one, other = splits.index("train"), splits.index("test")
    patients = [f"p{row}" for row in range(len(splits))]
    patients[one] = patients[other] = "anna"
    report = audit_dataset(
        dataclasses.replace(phantoms, manifest=with_column(phantoms.manifest, "patient_id", patients))
    )
    assert report.leaks == {"patient": 1}
    assert "anna" in report.leak_examples[0]
    assert report.findings[0].startswith("Leakage: ")
