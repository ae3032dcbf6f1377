"""Evaluate a bundle on a split of a dataset and write the report: numbers, pictures, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError

from cxr_ray.bundle import Bundle, load_bundle
from cxr_ray.data.splits import SPLITS
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.errors import ConfigError, DataError, did_you_mean
from cxr_ray.evaluation.answers import Answers, explain_mistakes, list_mistakes, predict_rows
from cxr_ray.evaluation.folder import file_name, free_folder, whole_folder
from cxr_ray.evaluation.looks import Look, read_looks, record_look
from cxr_ray.evaluation.pictures import MistakePicture, confusion_picture, curves_picture, mistakes_picture, png
from cxr_ray.evaluation.report import (
    CONFUSION_FILE,
    CONTENTS,
    CURVES_FILE,
    MISTAKES_FOLDER,
    PAGE_FILE,
    REPORT_FILE,
    BundleRef,
    DatasetRef,
    Mistake,
    Report,
    confusion_of,
    experiment_fingerprint,
    split_metrics,
    trained_on,
    warnings_of,
)
from cxr_ray.evaluation.report_page import report_page
from cxr_ray.metrics.classification import confusion_matrix
from cxr_ray.paths import locate
from cxr_ray.progress import progress


def evaluate(
    bundle: str | Path | Bundle,
    data: str | Path | Dataset,
    *,
    out: str | Path,
    split: str = "test",
    mistakes: int = 10,
    seed: int = 0,
    exclude_flags: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
) -> Report:
    """Evaluate a bundle and write the report folder; needs no Ray.

    Opening ``test`` adds a look to the dataset before the first prediction, and the look stays whatever
    happens afterwards.

    Args:
        bundle: A loaded bundle, or where it lies.
        data: An opened dataset, or where it lies. Its classes are the bundle's, or some of them.
        out: The report's folder, local or a URI.
        split: ``test``, ``val``, ``calibration`` or ``train``.
        mistakes: How many mistakes of each class are drawn at random and shown with heatmaps.
        seed: Of that draw.
        exclude_flags: Leave out films with one of these quality flags.
        overwrite: Replace a former report in `out`.
        quiet: No progress display.

    Returns:
        The content of `report.json`.

    Raises:
        BundleError: There is no bundle, or it is damaged.
        ConfigError: There is no such split, or `mistakes` is negative.
        DataError: The dataset does not fit the bundle, has no such images, or cannot record the look; `out`
            is taken.
    """
    if split not in SPLITS:
        hint = did_you_mean(split, SPLITS)
        raise ConfigError(f"there is no split '{split}'{hint}; allowed are {', '.join(SPLITS)}", where="--split")
    if mistakes < 0:
        raise ConfigError(f"{mistakes} is not a number of mistakes to show; 0 or more is allowed", where="--mistakes")
    folder = free_folder(out, marker=REPORT_FILE, contents=_former_contents, overwrite=overwrite)
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, best_device())
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    dataset = dataset.excluding(exclude_flags)
    check_fits(bundle, dataset)
    rows = dataset.rows(split)
    if not len(rows):
        raise DataError(f"has no {split} images", where=dataset.uri, next_step="Choose another --split")
    with whole_folder(folder, marker=REPORT_FILE) as partial:
        looks = _look(bundle, dataset, split, len(rows))
        with progress("Evaluating", len(rows), quiet=quiet) as line:
            answers = predict_rows(bundle, dataset, rows, line)
        wrong = list_mistakes(bundle, dataset, answers, mistakes, seed)
        report = _report(bundle, dataset, split, answers, wrong, looks, folder.uri)
        _write(partial, report, bundle, explain_mistakes(bundle, dataset, wrong))
    return report


def best_device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_fits(bundle: Bundle, dataset: Dataset) -> None:
    """Check that a dataset holds what the bundle was made for.

    Raises:
        DataError: It has classes the bundle does not know, or its films were squared in another way.
    """
    unknown = [name for name in dataset.classes if name not in bundle.classes]
    if unknown:
        raise DataError(
            f"has classes that the bundle does not know: {', '.join(unknown)} "
            f"(the bundle knows {', '.join(bundle.classes)})",
            where=dataset.uri,
            next_step="Import the films again without these classes, or evaluate a bundle that was trained on them",
        )
    expected, info = bundle.info.preprocessing, dataset.info
    if (info.image_size, info.fit) != (expected.dataset_size, expected.fit):
        raise DataError(
            f"holds films squared to {info.image_size} px by '{info.fit}', but the bundle was trained on films squared "
            f"to {expected.dataset_size} px by '{expected.fit}'",
            where=dataset.uri,
            next_step="Import the films again with: cxr-ray data import SRC OUT "
            f"--size {expected.dataset_size} --fit {expected.fit}",
        )


def _former_contents(report: bytes) -> frozenset[str]:
    try:
        Report.model_validate_json(report)
    except ValidationError:
        return frozenset()
    return CONTENTS


def _look(bundle: Bundle, dataset: Dataset, split: str, images: int) -> list[Look]:
    if split != "test":
        return read_looks(dataset.uri)
    experiment = experiment_fingerprint(bundle.info)
    return record_look(dataset.uri, bundle_id=bundle.id, experiment=experiment, split=split, images=images)


def _report(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    answers: Answers,
    mistakes: list[Mistake],
    looks: list[Look],
    folder: str,
) -> Report:
    labels_n, predicted_n = torch.from_numpy(answers.labels), torch.from_numpy(answers.predicted)
    counts = confusion_matrix(labels_n, predicted_n, len(bundle.classes))
    images = dict(zip(bundle.classes, counts.sum(axis=1).tolist(), strict=True))
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=BundleRef(
            id=bundle.id,
            name=bundle.info.name,
            uri=bundle.uri,
            classes=bundle.classes,
            watched_class=bundle.info.watched_class,
            experiment_fingerprint=experiment_fingerprint(bundle.info),
            trained_on=trained_on(bundle.info),
        ),
        dataset=DatasetRef(
            name=dataset.info.name,
            fingerprint=dataset.stored_fingerprint,
            uri=dataset.uri,
            exclude_flags=list(dataset.exclude_flags),
        ),
        split=split,
        n=len(answers.rows),
        images=images,
        metrics=split_metrics(counts, bundle.classes, split),
        confusion=confusion_of(counts, bundle.classes),
        mistakes=mistakes,
        looks=looks,
        warnings=warnings_of(bundle.info, dataset, split, images),
        folder=folder,
    )


def _write(folder: Path, report: Report, bundle: Bundle, pictures: list[MistakePicture]) -> None:
    history, watched = bundle.history(), report.bundle.watched_class
    (folder / CONFUSION_FILE).write_bytes(png(confusion_picture(report.confusion)))
    if history:
        (folder / CURVES_FILE).write_bytes(png(curves_picture(history, watched)))
    (folder / MISTAKES_FOLDER).mkdir()
    for number, name in enumerate(bundle.classes):
        of_class = [picture for picture in pictures if picture.mistake.label == name]
        if of_class:
            file = folder / MISTAKES_FOLDER / f"{file_name(name, number)}.png"
            file.write_bytes(png(mistakes_picture(of_class, name)))
    (folder / PAGE_FILE).write_text(report_page(report, history, pictures), encoding="utf-8")
    locate(folder / REPORT_FILE).write_json(report.model_dump(mode="json"))
