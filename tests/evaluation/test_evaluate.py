from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix

from cxr_ray.bundle import Bundle
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.store import LOOKS_FILE, Dataset
from cxr_ray.errors import ConfigError, DataError
from cxr_ray.evaluation import evaluate as evaluate_module
from cxr_ray.evaluation.evaluate import evaluate
from cxr_ray.evaluation.report import Report, load_report

from .conftest import CLASSES, STORED, draw_films, make_bundle, untrained


@pytest.fixture(scope="module")
def report(bundle: Bundle, shared_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("reports") / "test"
    return evaluate(bundle, shared_dataset, out=out, mistakes=2, quiet=True)


@pytest.fixture(scope="module")
def by_hand(bundle: Bundle, films: Path, shared_dataset: Dataset) -> tuple[list[str], list[str]]:
    """Labels and predictions of the test films, one file after the other through `Bundle.predict`."""
    rows = shared_dataset.rows("test")
    paths, labels = shared_dataset.column("path"), shared_dataset.column("label")
    return [labels[row] for row in rows], [bundle.predict(films / paths[row]).label for row in rows]


def test_metrics_are_those_of_scikit_learn_on_the_answers_to_the_original_files(
    report: Report, by_hand: tuple[list[str], list[str]]
) -> None:
    labels, predicted = by_hand
    saved = json.loads((Path(report.folder) / "report.json").read_text())
    assert saved["confusion"]["counts"] == confusion_matrix(labels, predicted, labels=CLASSES).tolist()
    assert saved["images"] == dict.fromkeys(CLASSES, 12)
    by_class = classification_report(labels, predicted, labels=CLASSES, output_dict=True)
    assert isinstance(by_class, dict)
    mean = by_class["macro avg"]
    expected = {
        "test/accuracy": accuracy_score(labels, predicted),
        "test/macro_precision": mean["precision"],
        "test/macro_recall": mean["recall"],
        "test/macro_f1": mean["f1-score"],
    }
    for name in CLASSES:
        for kind, theirs in {"precision": "precision", "recall": "recall", "f1": "f1-score"}.items():
            expected[f"test/{kind}/{name}"] = by_class[name][theirs]
    assert saved["metrics"] == pytest.approx(expected)


def test_every_mistake_is_listed_with_the_probabilities_that_the_bundle_gives(
    report: Report, by_hand: tuple[list[str], list[str]], bundle: Bundle, films: Path
) -> None:
    wrong = Counter((label, predicted) for label, predicted in zip(*by_hand, strict=True) if label != predicted)
    assert wrong, "the fixture should leave something to find"
    assert Counter((mistake.label, mistake.predicted) for mistake in report.mistakes) == wrong
    for mistake in report.mistakes:
        expected = bundle.predict(films / mistake.path).probabilities
        assert mistake.probabilities == pytest.approx(expected, abs=1e-4)


def test_at_most_the_asked_number_of_mistakes_of_each_class_is_shown(report: Report) -> None:
    wrong = Counter(mistake.label for mistake in report.mistakes)
    shown = Counter(mistake.label for mistake in report.mistakes if mistake.shown)
    assert shown == {name: min(2, count) for name, count in wrong.items()}
    pictures = {file.stem for file in (Path(report.folder) / "mistakes").iterdir()}
    assert pictures == set(shown)


def test_the_report_holds_its_pictures_and_reads_back(report: Report) -> None:
    folder = Path(report.folder)
    assert {file.name for file in folder.iterdir()} == {
        "report.json", "index.html", "confusion_matrix.png", "learning_curves.png", "mistakes",
    }  # fmt: skip
    for file in folder.rglob("*.png"):
        with Image.open(file) as image:
            image.load()
    assert load_report(folder) == report


def test_each_opening_of_test_is_a_look_and_val_is_none(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    looks = dataset.root / LOOKS_FILE
    evaluate(bundle, dataset, split="val", out=tmp_path / "a", mistakes=0, quiet=True)
    assert not looks.exists()
    for number in (1, 2):
        report = evaluate(bundle, dataset, out=tmp_path / f"b{number}", mistakes=0, quiet=True)
        lines = [json.loads(line) for line in looks.read_text().splitlines()]
        assert len(lines) == len(report.looks) == number
        assert lines[-1] | {"time": ""} == {
            "time": "", "bundle": bundle.id, "experiment": "0123456789abcdef", "split": "test", "images": 36,
        }  # fmt: skip
    on_val = evaluate(bundle, dataset, split="val", out=tmp_path / "c", mistakes=0, quiet=True)
    assert len(on_val.looks) == 2
    assert any("chose the bundle" in warning for warning in on_val.warnings)


def test_a_look_stays_when_the_evaluation_fails_and_no_half_report_is_left(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        assert (dataset.root / LOOKS_FILE).exists(), "the look is written before the first prediction"
        raise RuntimeError("out of memory")

    monkeypatch.setattr(evaluate_module, "predict_rows", fail)
    out = tmp_path / "reports" / "r"
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(bundle, dataset, out=out, quiet=True)
    assert len((dataset.root / LOOKS_FILE).read_text().splitlines()) == 1
    assert not list(out.parent.iterdir())


def test_test_stays_closed_when_the_look_cannot_be_recorded(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    (dataset.root / LOOKS_FILE).mkdir()
    with pytest.raises(DataError, match=r"cannot be recorded.*stays closed"):
        evaluate(bundle, dataset, out=tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()


def test_a_class_that_the_bundle_does_not_know_is_named(bundle: Bundle, tmp_path: Path) -> None:
    films = draw_films(tmp_path / "src", ["normal", "tuberculosis"])
    other = import_dataset(films, tmp_path / "other", size=STORED, quiet=True)
    with pytest.raises(DataError, match=r"does not know: tuberculosis \(the bundle knows normal, covid, lung_opacity"):
        evaluate(bundle, other, out=tmp_path / "r", quiet=True)
    assert not (other.root / LOOKS_FILE).exists()


def test_films_stored_at_another_size_are_refused_with_both_sizes_and_the_command(
    bundle: Bundle, films: Path, tmp_path: Path
) -> None:
    other = import_dataset(films, tmp_path / "other", size=80, fit="pad", quiet=True)
    with pytest.raises(DataError, match=r"80 px by 'pad'.*96 px by 'squash'.*--size 96 --fit squash"):
        evaluate(bundle, other, out=tmp_path / "r", quiet=True)
    assert not (other.root / LOOKS_FILE).exists()


def test_a_dataset_with_fewer_classes_is_scored_over_the_classes_it_has(tmp_path: Path) -> None:
    films = draw_films(tmp_path / "src", ["covid", "lung_opacity"])
    fewer = import_dataset(films, tmp_path / "fewer", size=STORED, quiet=True)
    # Another order than the dataset's, so that class numbers that are mixed up show.
    wide = make_bundle(tmp_path / "b", untrained(3), ["lung_opacity", "normal", "covid"])
    report = evaluate(wide, fewer, out=tmp_path / "r", quiet=True)
    labels = fewer.column("label")
    expected = Counter(
        (labels[row], wide.predict(films / fewer.column("path")[row]).label) for row in fewer.rows("test")
    )
    counts = report.confusion.counts
    found = {
        (label, predicted): counts[i][j]
        for i, label in enumerate(wide.classes)
        for j, predicted in enumerate(wide.classes)
        if counts[i][j]
    }
    assert found == expected
    assert report.images == {"lung_opacity": 12, "normal": 0, "covid": 12}
    assert report.metric("recall/normal") is None
    assert report.confusion.row_shares[1] is None
    assert any("no film of normal" in warning for warning in report.warnings)
    assert any("another dataset" in warning for warning in report.warnings)
    json.loads((tmp_path / "r" / "report.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("split", ["tset", "", "all"])
def test_an_unknown_split_is_refused_with_the_splits_there_are(
    bundle: Bundle, shared_dataset: Dataset, tmp_path: Path, split: str
) -> None:
    with pytest.raises(ConfigError, match="train, val, calibration, test"):
        evaluate(bundle, shared_dataset, split=split, out=tmp_path / "r", quiet=True)


def test_a_former_report_is_replaced_only_when_asked(bundle: Bundle, shared_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "r"
    out.mkdir()
    evaluate(bundle, shared_dataset, split="val", out=out, mistakes=0, quiet=True)
    with pytest.raises(DataError, match=r"already holds .*--overwrite"):
        evaluate(bundle, shared_dataset, split="val", out=out, quiet=True)
    again = evaluate(bundle, shared_dataset, split="calibration", out=out, mistakes=0, overwrite=True, quiet=True)
    assert load_report(out) == again
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_folder_with_anything_else_in_it_is_never_replaced(
    bundle: Bundle, shared_dataset: Dataset, tmp_path: Path
) -> None:
    evaluate(bundle, shared_dataset, split="val", out=tmp_path / "r", mistakes=0, quiet=True)
    (tmp_path / "r" / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text('{"kind": "audit"}')
    (tmp_path / "file").write_text("")
    for name, problem in (("r", "holds 'notes.txt'"), ("other", "holds 'report.json'"), ("file", "is a file")):
        with pytest.raises(DataError, match=problem):
            evaluate(bundle, shared_dataset, split="val", out=tmp_path / name, overwrite=True, quiet=True)
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_remote_data_and_report_work_like_local_ones(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset.root), "/films", recursive=True)
    try:
        for number in (1, 2):
            report = evaluate(bundle, "memory://films", out=f"memory://report{number}", quiet=True)
            assert load_report(f"memory://report{number}") == report
            assert len(memory.cat(f"/films/{LOOKS_FILE}").splitlines()) == len(report.looks) == number
        assert memory.exists("/report1/index.html")
        assert memory.exists("/report1/mistakes")
        local = evaluate(bundle, dataset, out=tmp_path / "local", quiet=True)
        assert (local.metrics, local.mistakes) == (report.metrics, report.mistakes)
    finally:
        memory.rm("/", recursive=True)
