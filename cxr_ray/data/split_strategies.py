"""The ways to split a dataset: at random, as the set gives it, or with whole sources held out for the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from cxr_ray.data.labels import class_order
from cxr_ray.data.splits import LEARNING_SPLITS, RATIOS, SPLITS, group_ids, random_split
from cxr_ray.errors import ConfigError, DataError, did_you_mean

Strategy = Literal["random", "given", "source-holdout"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
GIVEN_COLUMN = "extra.given_split"  # what the set itself says, kept whatever the import does with it


class SplitRecord(BaseModel):
    """How a dataset was split, or is to be; goes into `dataset.json`.

    Attributes:
        strategy: ``random``, ``given`` or ``source-holdout``.
        ratios: Share of the images for each split, adding up to 1; of use where the strategy deals at random.
        holdout: The sources that make up the test split, for ``source-holdout``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Strategy = "random"
    ratios: dict[str, float] = RATIOS
    holdout: list[str] = []


@dataclass(frozen=True)
class Films:
    """What decides about a film's split; lists with one entry a film.

    Attributes:
        labels: Class slugs.
        sources: Where they came from.
        patient_ids: None where unknown.
        duplicate_groups: Equal for films that show the same.
        given: The set's own split, None where it gives none.
    """

    labels: list[str]
    sources: list[str]
    patient_ids: list[str | None]
    duplicate_groups: list[str]
    given: list[str | None]


def split_request(strategy: str | None, ratios: str | None, holdout: Sequence[str], *, has_given: bool) -> SplitRecord:
    """What the command line asks for.

    Args:
        strategy: One of `STRATEGIES`; None for what the other arguments imply.
        ratios: ``65/10/10/15``, for train, val, calibration and test; None for just that.
        holdout: Sources to hold out.
        has_given: Whether the films come with a split.

    Raises:
        ConfigError: An unknown strategy, or options that contradict each other.
    """
    if strategy is None:
        strategy = "source-holdout" if holdout else "given" if has_given and ratios is None else "random"
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"there is no split '{strategy}'{did_you_mean(strategy, STRATEGIES)}; there are {', '.join(STRATEGIES)}",
            where="--split",
        )
    if (strategy == "source-holdout") != bool(holdout):
        raise ConfigError(
            "source-holdout needs the sources to hold out" if not holdout else f"a {strategy} split holds nothing out",
            where="--hold-out",
            next_step="Give --split source-holdout --hold-out SOURCE, the latter once for each source",
        )
    if strategy == "given" and ratios is not None:
        raise ConfigError("a given split has shares of its own", where="--ratios", next_step="Leave it out")
    if strategy == "given" and not has_given:
        raise ConfigError(
            "the films come with no split", where="--split", next_step="Name one in a CSV's column 'split'"
        )
    return SplitRecord.model_validate(
        {"strategy": strategy, "ratios": parse_ratios(ratios), "holdout": sorted(set(holdout))}
    )


def parse_ratios(text: str | None) -> dict[str, float]:
    """Shares by split from ``65/10/10/15``; any four numbers, of which only their proportions count.

    Raises:
        ConfigError: Not four numbers, a negative one, or nothing for train or val.
    """
    if text is None:
        return dict(RATIOS)
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != len(SPLITS) or not np.isfinite(sum(numbers)) or min(numbers) < 0 or min(numbers[:2]) <= 0:
        raise ConfigError(
            f"'{text}' is not four numbers, of which the first two are above 0",
            where="--ratios",
            next_step="Give train/val/calibration/test, for example 65/10/10/15",
        )
    return {split: number / sum(numbers) for split, number in zip(SPLITS, numbers, strict=True)}


def assign_splits(films: Films, record: SplitRecord, *, seed: int, where: object) -> tuple[list[str], list[str]]:
    """Put every film into a split.

    Args:
        films: What decides.
        record: The strategy.
        seed: Of the dealing.
        where: What is split, for messages.

    Returns:
        The split of every film, and warnings for every later reader.

    Raises:
        ConfigError: A source to hold out that there is not.
        DataError: A class would have no image to learn from, or the given split names none.
    """
    if record.strategy == "given":
        splits, warnings = _as_given(films, seed, where)
    elif record.strategy == "source-holdout":
        splits, warnings = _hold_out(films, record, seed)
    else:
        everything = np.arange(len(films.labels))
        splits, warnings = _deal(films, everything, record.ratios, seed), []
    _check_learnable(films, splits, where)
    return splits, warnings


def _deal(films: Films, rows: np.ndarray, ratios: dict[str, float], seed: int) -> list[str]:
    return random_split(
        [films.labels[row] for row in rows],
        [films.sources[row] for row in rows],
        group_ids([films.patient_ids[row] for row in rows], [films.duplicate_groups[row] for row in rows]),
        shares={split: share for split, share in ratios.items() if share > 0},
        seed=seed,
    )


def _hold_out(films: Films, record: SplitRecord, seed: int) -> tuple[list[str], list[str]]:
    present = sorted(set(films.sources))
    for source in record.holdout:
        if source not in present:
            raise ConfigError(
                f"there is no source '{source}'{did_you_mean(source, present)}; there are {', '.join(present)}",
                where="--hold-out",
            )
    if len(record.holdout) == len(present):
        raise ConfigError(
            f"holding out {', '.join(present)} leaves nothing to learn from",
            where="--hold-out",
            next_step="Leave out one source or more",
        )
    held = np.isin(films.sources, record.holdout)
    # A patient or a film of a held-out source that occurs elsewhere too would be seen in training.
    together = group_ids(films.patient_ids, films.duplicate_groups)
    test = np.isin(together, together[held])
    rows = np.flatnonzero(~test)
    dealt = _deal(films, rows, {split: share for split, share in record.ratios.items() if split != "test"}, seed)
    splits = np.full(len(test), "test", object)
    splits[rows] = dealt
    warnings = []
    if moved := int((test & ~held).sum()):
        warnings.append(
            f"{moved} film(s) of other sources lie in test with the held-out ones, whose patients or films they show"
        )
    missing = [
        name for name in class_order(films.labels) if name not in {films.labels[i] for i in np.flatnonzero(test)}
    ]
    if missing:
        warnings.append(f"the held-out sources have no {', '.join(missing)}: test says nothing about it")
    return splits.tolist(), warnings


def _as_given(films: Films, seed: int, where: object) -> tuple[list[str], list[str]]:
    splits = [str(split) for split in films.given]
    missing = [split for split in LEARNING_SPLITS if split not in splits]
    if missing:
        raise DataError(
            f"the split column names no image for {' and none for '.join(map(repr, missing))}",
            where=where,
            next_step="Name some, or give --split random",
        )
    if "calibration" in splits:
        return splits, []
    val = np.array([row for row, split in enumerate(splits) if split == "val"])
    halves = _deal(films, val, {"val": 0.5, "calibration": 0.5}, seed)
    for row, split in zip(val, halves, strict=True):
        splits[row] = split
    taken = halves.count("calibration")
    if not taken:
        return splits, [
            "the split column names no calibration images, and val has none to spare (the films of each class belong "
            "to one patient): probabilities will not be calibrated"
        ]
    return splits, [
        f"the split column names no calibration images: {taken} of the {len(val)} val images were taken for it"
    ]


def _check_learnable(films: Films, splits: list[str], where: object) -> None:
    present = set(zip(films.labels, splits, strict=True))
    for label in class_order(films.labels):
        missing = [split for split in LEARNING_SPLITS if (label, split) not in present]
        if missing:
            rows = [row for row, name in enumerate(films.labels) if name == label]
            ids = [films.patient_ids[row] for row in rows]
            groups = len(set(group_ids(ids, [films.duplicate_groups[row] for row in rows]).tolist()))
            in_test = sum(splits[row] == "test" for row in rows)
            raise DataError(
                f"class '{label}' has no image in {' and '.join(missing)} "
                f"(its {len(rows)} images show {groups} different patient(s) or film(s)"
                + (f", {in_test} of them in test)" if in_test else ")"),
                where=where,
                next_step="Add images of it (from more patients), or split in another way",
            )
