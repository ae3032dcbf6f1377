"""The evaluation's page in a real browser, made by a real evaluation of an untrained bundle with hostile names."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, Request, sync_playwright

from cxr_ray.bundle import BundleInfo, Preprocessing, write_bundle
from cxr_ray.data.importers import import_dataset
from cxr_ray.evaluation.evaluate import evaluate
from cxr_ray.metrics.calibration import identity_calibration
from cxr_ray.model.dual_backbone import NetworkConfig, build_network

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<script>document.title='broken'</script><img src=x onerror=alert(1)>"
CLASSES = ["normal", "covid", "lung_opacity", "viral_pneumonia", "tuberculosis", HOSTILE]


def _films(folder: Path) -> Path:
    folder.mkdir()
    rows = []
    rng = np.random.default_rng(0)
    for label in CLASSES[:5]:
        for split, count in {"train": 1, "val": 1, "calibration": 1, "test": 4}.items():
            for number in range(count):
                name = f"{label}_{split}_{'a_very_long_name' * 6}_<img src=x onerror=alert(1)>_{number}.png"
                pixels = rng.integers(0, 255, (12, 10), dtype=np.uint8)
                Image.fromarray(pixels).resize((120, 130)).save(folder / name)
                rows.append({"path": name, "label": label, "split": split})
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    dataset = import_dataset(_films(folder / "films"), folder / "data", size=64, quiet=True)
    network = NetworkConfig(backbones="tiny")
    info = BundleInfo(
        name=f"a-bundle-with-a-long-name-{HOSTILE}",
        created="2026-11-23T20:00:00+00:00",
        classes=CLASSES,
        watched_class=HOSTILE,
        preprocessing=Preprocessing(dataset_size=64, fit="squash", network_size=64),
        network=network,
        calibration=identity_calibration(len(CLASSES)),
        thresholds=[1.0] * len(CLASSES),
        validation={},
        provenance={"experiment_fingerprint": "0123456789abcdef"},
        warnings=[HOSTILE],
    )
    torch.manual_seed(0)
    weights = build_network(network, len(CLASSES)).state_dict()
    history = [
        {"epoch": epoch, "train/loss": 2 - epoch / 4, "val/loss": 2 - epoch / 5, "val/macro_f1": epoch / 5,
         f"val/recall/{HOSTILE}": epoch / 6, "best": epoch < 4}
        for epoch in range(6)
    ]  # fmt: skip
    write_bundle(folder / "bundle", info, weights, "", history)
    for number in range(2):
        evaluate(folder / "bundle", dataset, out=folder / f"report{number}", mistakes=0, quiet=True)
    return Path(evaluate(folder / "bundle", dataset, out=folder / "report", quiet=True).page)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{CHROMIUM} is missing, and CI must run the browser tests")
        pytest.skip(f"{CHROMIUM} is missing (apt-get install chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield launched
        launched.close()


def _open(browser: Browser, file: Path, width: int, scheme: Literal["light", "dark"]) -> tuple[Page, list[str]]:
    """The page, and everything it complained about or asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    trouble: list[str] = []

    def requested(request: Request) -> None:
        if request.url != file.as_uri() and not request.url.startswith("data:"):
            trouble.append(f"request: {request.url}")

    page.on("console", lambda message: trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    page.on("request", requested)
    page.goto(file.as_uri(), wait_until="load")
    return page, trouble


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_quiet_and_fits_the_screen(
    browser: Browser, report_page: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    page, trouble = _open(browser, report_page, width, scheme)
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
    assert trouble == []
    assert "broken" not in page.title().split("<")[0]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll('main *')]
             .filter(e => !e.closest('.scroll, svg') && e.getBoundingClientRect().right > width + 1)
             .map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert page.locator("figure img").count() > 20
    assert broken == 0
    page.close()


def _contrast(page: Page, selector: str) -> list[float]:
    """WCAG 2 contrast ratio of each element's text with the page's paper."""
    return page.evaluate(
        """selector => {
          const light = text => {
            const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
              .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const paper = light(getComputedStyle(document.body).backgroundColor);
          return [...document.querySelectorAll(selector)].map(e => {
            const ink = light(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color']);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
          });
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper_in_both_colour_schemes(
    browser: Browser, report_page: Path, scheme: Literal["light", "dark"]
) -> None:
    page, _ = _open(browser, report_page, 1400, scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")
    for selector in ("p", "dt", "dd", "td", "th", "figcaption", "summary", "svg text"):
        ratios = _contrast(page, selector)
        assert ratios, selector
        assert min(ratios) >= 4.5, selector
    page.close()


def test_wide_tables_can_be_scrolled_from_the_keyboard(browser: Browser, report_page: Path) -> None:
    page, _ = _open(browser, report_page, 390, "light")
    box = page.get_by_role("region", name="Confusion matrix")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("e => e.scrollLeft > 0", arg=box.element_handle())
    page.close()
