"""Leakage: one patient, or one film, on both sides of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cxr_ray.data.store import Dataset
from cxr_ray.errors import DataError

_EXAMPLES = 3
_ONE_PERSON = (
    "ids are compared over all sources: if these number their patients independently, put the source in front of the id"
)


@dataclass(frozen=True)
class Leak:
    """Something that lies in more than one split.

    Attributes:
        kind: ``patient`` or ``duplicate``.
        key: The patient's id, or the duplicate group.
        images: The first image of it in each split, by split.
    """

    kind: str
    key: str
    images: dict[str, str]

    def __str__(self) -> str:
        films = ", ".join(f"{path} in {split}" for split, path in self.images.items())
        return f"patient {self.key}: {films}" if self.kind == "patient" else films


def find_leaks(
    splits: Sequence[str],
    patient_ids: Sequence[str | None],
    duplicate_groups: Sequence[str],
    paths: Sequence[str],
) -> list[Leak]:
    """Patients and duplicate groups in more than one split.

    Args:
        splits: One an image.
        patient_ids: One an image, None where unknown.
        duplicate_groups: One an image.
        paths: One an image, for the examples.

    Returns:
        Patients first, each kind in the order of the images.
    """
    leaks = []
    for kind, keys in (("patient", patient_ids), ("duplicate", duplicate_groups)):
        first: dict[str, str] = {}
        leaking = {
            key
            for key, split in zip(keys, splits, strict=True)
            if key is not None and first.setdefault(key, split) != split
        }
        seen: dict[str, dict[str, str]] = defaultdict(dict)
        for key, split, path in zip(keys, splits, paths, strict=True):
            if key in leaking:
                seen[key].setdefault(split, path)
        leaks += [Leak(kind, key, images) for key, images in seen.items()]
    return leaks


def describe_leaks(leaks: Sequence[Leak]) -> str:
    """A clause that counts leaks by kind and names three of each; empty without any."""
    clauses = []
    for kind, noun, hint in (("patient", "patient(s)", f" ({_ONE_PERSON})"), ("duplicate", "duplicate film(s)", "")):
        of_kind = [leak for leak in leaks if leak.kind == kind]
        if of_kind:
            examples = "; ".join(str(leak) for leak in of_kind[:_EXAMPLES])
            clauses.append(f"{len(of_kind)} {noun} lie in more than one split, for example {examples}{hint}")
    return "; and ".join(clauses)


def dataset_leaks(dataset: Dataset) -> list[Leak]:
    """The leaks between the splits of a dataset, films that `exclude_flags` keeps out aside."""
    used = sorted(int(row) for split in dataset.info.counts for row in dataset.rows(split))
    table = dataset.manifest.select(["split", "patient_id", "duplicate_group", "path"]).take(used)
    return find_leaks(*(table.column(name).to_pylist() for name in table.column_names))


def checked_for_leakage(dataset: Dataset, *, allow: bool = False) -> Dataset:
    """Refuse to learn from a dataset whose splits share patients or films.

    Args:
        dataset: The opened dataset.
        allow: Go on all the same; what leaks is then noted in `Dataset.leakage`, for everything that later shows a
            number from it.

    Raises:
        DataError: Something leaks, and that is not allowed.
    """
    leaks = dataset_leaks(dataset)
    if not leaks:
        return dataset
    if not allow:
        raise DataError(
            describe_leaks(leaks),
            where=dataset.uri,
            next_step="Split it anew with: cxr-ray data resplit DATASET OUT, or give --allow-leakage, which every "
            "leaderboard and model card will show",
        )
    patients = sum(leak.kind == "patient" for leak in leaks)
    note = f"{patients:,} patient(s) and {len(leaks) - patients:,} duplicate film(s) lie in more than one split"
    return replace(dataset, leakage=note)
