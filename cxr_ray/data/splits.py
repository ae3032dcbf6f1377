"""Who goes where: train, val, calibration and test, with one patient on one side only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cxr_ray.errors import DataError

SPLITS = ("train", "val", "calibration", "test")
RATIOS = {"train": 0.65, "val": 0.10, "calibration": 0.10, "test": 0.15}


def group_ids(patient_ids: Sequence[str | None], duplicate_groups: Sequence[str]) -> np.ndarray:
    """Number the sets of images that must stay together: one patient, one duplicate group, and their chains.

    Args:
        patient_ids: One an image, None where unknown (an unknown patient is a patient of its own).
        duplicate_groups: One an image; equal for images that show the same film.

    Returns:
        int64, (images,): equal numbers stay together, numbered by first appearance.
    """
    parent = list(range(len(duplicate_groups)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_seen: dict[tuple[str, str], int] = {}
    for i, (patient, duplicate) in enumerate(zip(patient_ids, duplicate_groups, strict=True)):
        for kind, name in (("duplicate", duplicate), ("patient", patient)):
            if name is None:
                continue
            other = first_seen.setdefault((kind, name), i)
            a, b = root(i), root(other)
            parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(len(parent))], np.int64)


def random_split(labels: Sequence[str], sources: Sequence[str], groups: np.ndarray, *, seed: int = 0) -> list[str]:
    """Split at random 65/10/10/15, stratified by label and source, groups kept whole.

    Groups are dealt largest first, each to the split that is furthest below its share of the group's own
    strata; ties by the shares. Deterministic in (input order, seed).

    Args:
        labels: One an image.
        sources: One an image.
        groups: int64, (images,), from `group_ids`.
        seed: Shuffles the order within groups of one size.

    Returns:
        The split of every image.
    """
    strata = [f"{label}\x1f{source}" for label, source in zip(labels, sources, strict=True)]
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[int(group)].append(i)
    totals: dict[str, int] = defaultdict(int)
    for stratum in strata:
        totals[stratum] += 1
    order = list(members)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    filled: dict[tuple[str, str], int] = defaultdict(int)
    result = [""] * len(strata)
    for group in order:
        counts: dict[str, int] = defaultdict(int)
        for i in members[group]:
            counts[strata[i]] += 1

        def lack(split: str, counts: dict[str, int] = counts) -> float:
            # How empty the split is, for the strata this group would add to, relative to the split's share:
            # relative, so that the small splits are served as readily as the large one.
            return sum(
                n * (1 - (filled[stratum, split] + n / 2) / (totals[stratum] * RATIOS[split]))
                for stratum, n in counts.items()
            )

        best = max(SPLITS, key=lambda split: (lack(split), RATIOS[split]))
        for stratum, n in counts.items():
            filled[stratum, best] += n
        for i in members[group]:
            result[i] = best
    return result


def check_given(
    splits: Sequence[str], patient_ids: Sequence[str | None], duplicate_groups: Sequence[str], paths: Sequence[str]
) -> list[str]:
    """Check a split column that came with the data.

    Returns:
        What is wrong with it, a sentence each: patients or exact duplicates in more than one split.

    Raises:
        DataError: A name that is not one of `SPLITS`, or no training images.
    """
    for split, path in zip(splits, paths, strict=True):
        if split not in SPLITS:
            raise DataError(
                f"split '{split}' of image '{path}' is not one of {', '.join(SPLITS)}",
                next_step="Correct the split column, or leave it out to have the import split the images",
            )
    if "train" not in splits or "val" not in splits:
        raise DataError(
            "the split column names no image for 'train' or none for 'val'",
            next_step="Give both, or leave the column out to have the import split the images",
        )
    problems = []
    for what, keys in (("patient", patient_ids), ("duplicate group", duplicate_groups)):
        seen: dict[str, dict[str, str]] = defaultdict(dict)
        for key, split, path in zip(keys, splits, paths, strict=True):
            if key is not None:
                seen[key].setdefault(split, path)
        crossing = {key: where for key, where in seen.items() if len(where) > 1}
        if crossing:
            examples = "; ".join(
                f"{key}: " + ", ".join(f"{path} in {split}" for split, path in where.items())
                for key, where in list(crossing.items())[:3]
            )
            problems.append(f"{len(crossing)} {what}(s) lie in more than one split, for example {examples}")
    return problems
