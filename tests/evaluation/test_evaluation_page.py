from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.bundle import Bundle
from cxr_ray.data.importers import import_dataset
from cxr_ray.evaluation.evaluate import evaluate
from cxr_ray.evaluation.looks import Look
from cxr_ray.evaluation.pictures import MistakePicture
from cxr_ray.evaluation.report import BundleRef, DatasetRef, Mistake, Report, confusion_of, split_metrics
from cxr_ray.evaluation.report_page import report_page

from .conftest import STORED, draw_films, history, make_bundle, untrained

HOSTILE = "<script>alert('x')</script>"
_VOID = {"br", "img", "link", "meta"}


class _Reader(HTMLParser):
    """Collects what a browser would see, and fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset") and value]


def _report(counts: list[list[int]], classes: list[str], mistakes: list[Mistake] | None = None) -> Report:
    matrix = np.array(counts, np.int64)
    bundle = BundleRef(
        id="ab" * 32, name="b", uri="/b", classes=classes, watched_class=classes[1],
        experiment_fingerprint=None, trained_on=None,
    )  # fmt: skip
    return Report(
        created="2026-11-23T20:00:00+00:00",
        bundle=bundle,
        dataset=DatasetRef(name="d", fingerprint="f", uri="/d"),
        split="test",
        n=int(matrix.sum()),
        images=dict(zip(classes, matrix.sum(axis=1).tolist(), strict=True)),
        metrics=split_metrics(matrix, classes, "test"),
        confusion=confusion_of(matrix, classes),
        mistakes=mistakes or [],
        looks=[
            Look(time="2026-11-23T20:00:00+00:00", bundle=name * 32, split="test", images=9) for name in ("ab", "cd")
        ],
        warnings=["the probabilities are not calibrated"],
    )


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a real evaluation whose bundle, class and file names are scripts."""
    folder = tmp_path_factory.mktemp("hostile")
    films = draw_films(folder / "src", ["normal", "covid"])
    for file in films.glob("*test*.png"):
        file.rename(file.with_name(file.name.replace("test", "<script>alert(1)<script>")))
    listing = films / "metadata.csv"
    listing.write_text(re.sub(r"(\w+)_test_(\d+).png", r"\1_<script>alert(1)<script>_\2.png", listing.read_text()))
    dataset = import_dataset(films, folder / "data", size=STORED, quiet=True)
    bundle = make_bundle(folder / "b", untrained(3), ["normal", HOSTILE, "covid"], name=HOSTILE)
    report = evaluate(bundle, dataset, out=folder / "report", quiet=True)
    return Path(report.page).read_text()


def test_scripts_in_the_names_of_bundles_classes_and_files_stay_text(hostile_page: str) -> None:
    assert "<script" not in hostile_page.lower()
    text = _Reader(hostile_page).text
    assert text.count(HOSTILE) > 3, "the bundle, and the class in the tables and the chart"
    assert "_<script>alert(1)<script>_" in text, "the path of a mistake"


def test_the_page_is_whole_and_fetches_nothing(hostile_page: str) -> None:
    read = _Reader(hostile_page)
    assert not re.search(
        r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"data:[\w/]+;base64,[\w+/=]+", "", hostile_page)
    )
    inner = [link for link in read.links if not link.startswith("data:")]
    assert all(link[1:] in read.ids for link in inner if link.startswith("#"))
    assert not [link for link in inner if not link.startswith("#")]
    assert [name for name, count in Counter(read.ids).items() if count > 1] == []


def test_the_page_shows_the_numbers_of_the_report(bundle: Bundle) -> None:
    report = _report([[8, 2, 0], [1, 3, 0], [0, 0, 6]], ["normal", "covid", "lung_opacity"])
    text = _Reader(report_page(report, history(5), [])).text
    assert "0.750recall of covid"[5:] in text
    assert "3 of 4 found" in text
    assert "17 of 20 correct" in text
    assert f"{report.metric('macro_f1'):.3f}" in text
    assert "n = 20" in text
    assert "covid (2)" in text, "what normal was most often taken for"
    assert "lung opacity" in text
    assert "lung_opacity" not in text
    assert "looked at 2 times, by 2 bundles" in text
    assert "the probabilities are not calibrated" in text
    assert "epoch 3" in text
    assert "Not a medical device" in text


def test_the_page_says_when_a_class_has_no_mistakes_few_or_no_films() -> None:
    classes = ["normal", "covid", "lung_opacity"]
    mistake = Mistake(
        image_id="0", path="a.png", label="normal", predicted="covid", shown=True,
        probabilities={"normal": 0.25, "covid": 0.75, "lung_opacity": 0.0},
    )  # fmt: skip
    film = np.zeros((64, 64), np.uint8)
    picture = MistakePicture(mistake, film, np.zeros((64, 64, 3), np.uint8), supported=False)
    report = _report([[8, 1, 0], [0, 4, 0], [0, 0, 0]], classes, [mistake])
    text = _Reader(report_page(report, [], [picture])).text
    assert "1 of 9 films wrong, all of them shown." in text
    assert "No mistakes: all 4 films were recognised." in text
    assert "There is no film of this class in the split." in text
    assert "normal → covid 0.75, normal 0.25; no evidence for it above zero" in text
    assert "holds no training history" in text


def test_more_mistakes_than_are_shown_are_counted() -> None:
    report = _report([[5, 4], [0, 3]], ["normal", "covid"])
    mistakes = [
        Mistake(image_id=str(i), path=f"{i}.png", label="normal", predicted="covid", shown=i < 1,
                probabilities={"normal": 0.4, "covid": 0.6})
        for i in range(4)
    ]  # fmt: skip
    report = report.model_copy(update={"mistakes": mistakes})
    film = np.zeros((64, 64), np.uint8)
    picture = MistakePicture(mistakes[0], film, np.zeros((64, 64, 3), np.uint8), supported=True)
    assert "4 of 9 films wrong, 1 of them shown." in _Reader(report_page(report, [], [picture])).text


@pytest.mark.parametrize("epochs", [1, 3])
def test_short_or_bare_histories_can_be_drawn(epochs: int) -> None:
    bare = [{"epoch": epoch, "val/macro_f1": 0.5} for epoch in range(epochs)]
    text = _Reader(report_page(_report([[1, 0], [0, 1]], ["normal", "covid"]), bare, [])).text
    assert f"Training ran for {epochs} epoch" in text
