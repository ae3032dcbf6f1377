"""How much of label and source can be told without looking at the disease: a warning before any network is trained.

A network that scores well may read the hospital instead of the lungs (DeGrave et al. 2021; Ahmed et al. 2021). Border,
size and tint show no lung at all, and a thumbnail shows it too small to read, so what these probes reach, a network can
reach without medicine.
"""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from cxr_ray.data.splits import group_ids
from cxr_ray.data.store import Dataset

CUES = {
    "thumbnail": "a 16 x 16 thumbnail",
    "border": "the outermost sixteenth of the film on each side",
    "size": "width, height, aspect and bit depth of the file",
    "tint": "how far the file is from gray",
    "frame": "border, size and tint together",
}
_EDGE = 32  # pixels a side of the picture that thumbnails and borders are taken from
_FOLDS = 5
_MOST_FILMS = 6000  # a probe that needs more to see a difference has found a small one
_TREES = 100


class Probe(BaseModel):
    """What one cue tells about one target.

    Attributes:
        cue: One of `CUES`.
        target: ``label`` or ``source``.
        balanced_accuracy: Mean recall over the target's values, cross-validated, patients and duplicates together.
        spread: Standard deviation over the folds.
        chance: What guessing reaches: 1 / number of values.
        images: Films in the probe.
        values: The target's values in the probe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cue: str
    target: str
    balanced_accuracy: float
    spread: float
    chance: float
    images: int
    values: list[str]


def probe_sources(dataset: Dataset, *, seed: int = 0) -> list[Probe]:
    """Predict label and source from what has nothing to do with disease.

    Random forests of extremely randomised trees (Geurts et al. 2006), classes weighted alike, five folds that keep
    patients and duplicates together; at most 6,000 films, drawn at random.

    Args:
        dataset: The opened dataset; films in every split count.
        seed: Of the draw, the folds and the trees.

    Returns:
        One a target and cue; none for a target with a single value, or too few films to cross-validate.
    """
    rows = np.arange(dataset.manifest.num_rows)
    if len(rows) > _MOST_FILMS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_FILMS, replace=False))
    cues = _cues(dataset, rows)
    table = dataset.manifest.take(rows)
    groups = group_ids(table.column("patient_id").to_pylist(), table.column("duplicate_group").to_pylist())
    probes = []
    for target in ("label", "source"):
        names = np.array(table.column(target).to_pylist())
        kept = _with_enough_groups(names, groups)
        values = sorted(set(names[kept].tolist()))
        if len(values) < 2:
            continue
        for cue, features in cues.items():
            scores = _cross_validated(features[kept], names[kept], groups[kept], seed)
            probes.append(
                Probe(
                    cue=cue,
                    target=target,
                    balanced_accuracy=float(scores.mean()),
                    spread=float(scores.std()),
                    chance=1 / len(values),
                    images=len(kept),
                    values=values,
                )
            )
    return probes


def _cues(dataset: Dataset, rows: np.ndarray) -> dict[str, np.ndarray]:
    """float32, (films, features), by cue."""
    small = np.stack([cv2.resize(dataset.pixels[row], (_EDGE, _EDGE), interpolation=cv2.INTER_AREA) for row in rows])
    inside = np.zeros((_EDGE, _EDGE), bool)
    rim = _EDGE // 16
    inside[rim:-rim, rim:-rim] = True
    table = dataset.manifest.take(rows)

    def column(name: str) -> np.ndarray:
        return np.array(table.column(name).to_pylist(), np.float32)

    width, height = column("width"), column("height")
    cues = {
        "thumbnail": small.reshape(len(rows), _EDGE // 2, 2, _EDGE // 2, 2).mean(axis=(2, 4)).reshape(len(rows), -1),
        "border": small[:, ~inside],
        "size": np.column_stack([width, height, width / height, column("bit_depth")]),
        "tint": column("tint")[:, None],
    }
    cues = {name: values.astype(np.float32) for name, values in cues.items()}
    return cues | {"frame": np.hstack([cues[name] for name in ("border", "size", "tint")])}


def _with_enough_groups(names: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """int64: the films whose value has a group for every fold."""
    count = Counter(name for name, _ in set(zip(names.tolist(), groups.tolist(), strict=True)))
    return np.flatnonzero([count[name] >= _FOLDS for name in names.tolist()])


def _cross_validated(features: np.ndarray, names: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """float64, (folds,): balanced accuracy of each fold, over the values that occur in it."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    scores = []
    for train, test in folds.split(features, names, groups):
        trees = ExtraTreesClassifier(
            _TREES, class_weight="balanced", min_samples_leaf=2, n_jobs=-1, random_state=seed
        ).fit(features[train], names[train])
        present = np.unique(names[test])
        guessed = trees.predict(features[test])
        scores.append(recall_score(names[test], guessed, labels=present, average="macro"))
    return np.array(scores)
