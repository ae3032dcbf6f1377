"""What a bundle says about the images of a split, and which of its mistakes are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cxr_ray.bundle import Bundle
from cxr_ray.data.loader import FilmDataset, eval_batches
from cxr_ray.data.store import Dataset
from cxr_ray.evaluation.pictures import MistakePicture
from cxr_ray.evaluation.report import Mistake
from cxr_ray.progress import ProgressLine

BATCH_SIZE = 32  # small enough for the full-size network in 4 GB; larger is hardly faster on any device


@dataclass(frozen=True)
class Answers:
    """What the bundle said about every image of a split, in the order of the manifest.

    Attributes:
        rows: int64, (N,), row numbers in the manifest.
        labels: int64, (N,), class numbers of the bundle.
        predicted: int64, (N,), decided by the bundle's thresholds.
        probabilities: float32, (N, K), calibrated.
    """

    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray


def predict_rows(bundle: Bundle, dataset: Dataset, rows: np.ndarray, line: ProgressLine) -> Answers:
    """Answers for some rows of a dataset.

    Args:
        bundle: The classifier.
        dataset: Its classes are the bundle's or some of them, its films squared as the bundle expects.
        rows: int64, (N,), N at least 1.
        line: Moves on by the images done.
    """
    films = FilmDataset(dataset, rows, bundle.info.preprocessing.network_size)
    parts = []
    for images, _, _ in eval_batches(films, BATCH_SIZE):
        logits_nk = torch.from_numpy(bundle.logits(images[:, 0].numpy()))
        parts.append(bundle.info.calibration.probabilities(logits_nk))
        line.advance(len(images))
    probabilities_nk = torch.cat(parts)
    # The dataset may hold some of the bundle's classes only: its class numbers are not the bundle's.
    numbers = np.array([bundle.class_index(name) for name in dataset.classes], np.int64)
    return Answers(
        rows=rows,
        labels=numbers[dataset.labels[rows]],
        predicted=bundle.decide(probabilities_nk).numpy(),
        probabilities=probabilities_nk.numpy(),
    )


def list_mistakes(bundle: Bundle, dataset: Dataset, answers: Answers, at_most: int, seed: int) -> list[Mistake]:
    """All mistakes by class and falling confidence; up to `at_most` random ones of each class are to be shown.

    A class's draw depends on the seed and on its own mistakes alone.
    """
    ids, paths = dataset.column("image_id"), dataset.column("path")
    mistakes = []
    for k, label in enumerate(bundle.classes):
        wrong = np.flatnonzero((answers.labels == k) & (answers.predicted != k))
        shown = set(np.random.default_rng([seed, k]).permutation(wrong)[:at_most].tolist())
        confidence = answers.probabilities[wrong, answers.predicted[wrong]]
        mistakes += [
            Mistake(
                image_id=ids[answers.rows[i]],
                path=paths[answers.rows[i]],
                label=label,
                predicted=bundle.classes[answers.predicted[i]],
                probabilities=dict(zip(bundle.classes, answers.probabilities[i].tolist(), strict=True)),
                shown=i in shown,
            )
            for i in wrong[np.argsort(-confidence, kind="stable")].tolist()
        ]
    return mistakes


def explain_mistakes(bundle: Bundle, dataset: Dataset, mistakes: list[Mistake]) -> list[MistakePicture]:
    """The mistakes that are to be shown, each film with the heatmap of the class it was taken for."""
    shown = [mistake for mistake in mistakes if mistake.shown]
    row_of = {image_id: row for row, image_id in enumerate(dataset.column("image_id"))}
    rows = np.array([row_of[mistake.image_id] for mistake in shown], np.int64)
    films = FilmDataset(dataset, rows, bundle.info.preprocessing.network_size)
    pictures: list[MistakePicture] = []
    for images, _, _ in eval_batches(films, BATCH_SIZE):
        part = shown[len(pictures) : len(pictures) + len(images)]
        explanations = bundle.explain_prepared(images[:, 0].numpy(), [mistake.predicted for mistake in part])
        pictures += [
            MistakePicture(
                mistake, explanation.film, explanation.overlay(), supported=bool((explanation.attribution > 0).any())
            )
            for mistake, explanation in zip(part, explanations, strict=True)
        ]
    return pictures
