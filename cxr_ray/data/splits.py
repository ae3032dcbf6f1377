"""Who goes where: train, val, calibration and test, with one patient on one side only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SPLITS = ("train", "val", "calibration", "test")
RATIOS = {"train": 0.65, "val": 0.10, "calibration": 0.10, "test": 0.15}
LEARNING_SPLITS = ("train", "val")  # a class that is missing here cannot be learnt

_Stratum = tuple[str, str | None]


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

    for names in (duplicate_groups, patient_ids):
        first_seen: dict[str, int] = {}
        for i, name in enumerate(names):
            if name is not None:
                a, b = root(i), root(first_seen.setdefault(name, i))
                parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(len(parent))], np.int64)


def random_split(
    labels: Sequence[str],
    sources: Sequence[str],
    groups: np.ndarray,
    *,
    shares: Mapping[str, float] = RATIOS,
    seed: int = 0,
) -> list[str]:
    """Split at random, stratified by label and source, groups kept whole.

    Groups are dealt largest first, each to the split that is furthest below its share of the group's own
    strata; ties by the shares. A class then misses a split only if it has too few groups. Deterministic in
    (input order, seed).

    Args:
        labels: One an image.
        sources: One an image.
        groups: int64, (images,), from `group_ids`.
        shares: The splits to deal to, each with its share of the images; 65/10/10/15 by default.
        seed: Shuffles the order within groups of one size.

    Returns:
        The split of every image.
    """
    strata = _strata(labels, sources, min(shares.values()))
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[int(group)].append(i)
    totals = Counter(strata)
    order = list(members)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    filled: Counter[tuple[_Stratum, str]] = Counter()
    split_of: dict[int, str] = {}
    for group in order:
        counts = Counter(strata[i] for i in members[group])

        def lack(split: str, counts: Counter[_Stratum] = counts) -> float:
            # How empty the split is, for the strata this group would add to, relative to the split's share:
            # relative, so that the small splits are served as readily as the large one.
            return sum(
                n * (1 - (filled[stratum, split] + n / 2) / (totals[stratum] * shares[split]))
                for stratum, n in counts.items()
            )

        split_of[group] = max(shares, key=lambda split: (lack(split), shares[split]))
        for stratum, n in counts.items():
            filled[stratum, split_of[group]] += n
    _reach_every_split(split_of, {group: [labels[i] for i in rows] for group, rows in members.items()}, shares)
    return [split_of[int(group)] for group in groups]


def _strata(labels: Sequence[str], sources: Sequence[str], smallest_share: float) -> list[_Stratum]:
    """What each image is balanced by: label and source, or the label alone where the two are rare together.

    A stratum without one image for the smallest split goes to the largest nearly whole, so a set whose sources
    have a few images each would become training images all of it.
    """
    pairs = list(zip(labels, sources, strict=True))
    sizes = Counter(pairs)
    return [pair if sizes[pair] * smallest_share >= 1 else (pair[0], None) for pair in pairs]


def _reach_every_split(split_of: dict[int, str], labels_of: Mapping[int, list[str]], splits: Iterable[str]) -> None:
    """Move groups, in place, until every class is in every split it has enough groups for.

    A group leaves a split only if its classes stay there with another; `LEARNING_SPLITS` may take the last.
    """
    held: dict[tuple[str, str], set[int]] = defaultdict(set)
    for group, labels in labels_of.items():
        for label in labels:
            held[label, split_of[group]].add(group)

    def is_last(group: int) -> bool:
        return any(len(held[label, split_of[group]]) == 1 for label in labels_of[group])

    for label in sorted({label for label, _ in held}):
        for split in (split for split in splits if not held[label, split]):
            movable = [
                group
                for donor in splits
                for group in held[label, donor]
                if not is_last(group) or (split in LEARNING_SPLITS and donor not in LEARNING_SPLITS)
            ]
            if movable:
                group = min(movable, key=lambda group: (is_last(group), len(labels_of[group]), group))
                for other in set(labels_of[group]):
                    held[other, split_of[group]].remove(group)
                    held[other, split].add(group)
                split_of[group] = split
