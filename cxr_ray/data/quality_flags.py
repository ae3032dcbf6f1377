"""Quality flags: films that stand out from their own dataset, or are bad by any standard.

A flag's threshold follows the dataset (median and MAD) but only between two bounds. The mild bound keeps a clean
dataset almost free of flags, in which the darkest film is still a good film; the severe bound flags a dataset that
is bad throughout, in which no film stands out. Where most films measure zero (border, tint, saturation) the MAD is
zero too, and the mild bound decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from cxr_ray.data.quality import MEASURES, ORIENTATION_MEASURES
from cxr_ray.data.resize import Fit
from cxr_ray.errors import DataError

_NORMAL = 1.4826  # standard deviations a MAD, for values that follow a normal distribution


class _Rule(NamedTuple):
    """Which films get a flag: those beyond `deviations` from the median, moved between `mild` and `severe`."""

    flag: str
    measure: str
    direction: Literal["above", "below"]
    deviations: float
    mild: float
    severe: float


# Under and over mean dark and bright pictures, as in photography: on film, a longer exposure makes a darker picture.
_RULES = (
    _Rule("under_exposed", "brightness", "below", 2.5, 0.32, 0.24),
    _Rule("over_exposed", "brightness", "above", 2.0, 0.72, 0.80),
    _Rule("low_contrast", "contrast", "below", 2.0, 0.22, 0.12),
    _Rule("blurred", "sharpness", "below", 3.5, 0.45, 0.40),
    _Rule("saturated", "saturated", "above", 4.0, 0.02, 0.05),
    _Rule("wide_border", "film_border", "above", 4.0, 0.20, 0.30),
    _Rule("tinted", "tint", "above", 4.0, 0.02, 0.04),
    _Rule("odd_aspect", "elongation", "above", 4.0, 1.40, 1.80),
    _Rule("inverted", "inversion", "above", 4.0, 0.25, 0.30),
    _Rule("upside_down", "upside_down", "above", 4.0, 0.10, 0.15),
    _Rule("sideways", "sideways", "above", 4.0, 0.15, 0.20),
)
FLAGS = tuple(rule.flag for rule in _RULES)


class Threshold(BaseModel):
    """Where a flag begins in one dataset, and how that was found.

    Attributes:
        measure: What is compared.
        direction: Whether films ``above`` or ``below`` the value are flagged.
        value: The threshold, in the measure's units.
        found_by: ``median and MAD`` of the dataset, or the bound that applied instead: ``mild bound`` (the dataset
            alone would flag harmless films) or ``severe bound`` (it would pass bad ones).
        median: Of the dataset.
        mad: Median absolute deviation of the dataset, not scaled.
        deviations: How many times 1.4826 MAD beyond the median a film stands out.
        mild: The threshold is never nearer to harmless values than this.
        severe: Nor farther from them than this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str
    direction: Literal["above", "below"]
    value: float
    found_by: Literal["median and MAD", "mild bound", "severe bound"]
    median: float
    mad: float
    deviations: float
    mild: float
    severe: float


class FlagResult(NamedTuple):
    """What `flag_films` found.

    Attributes:
        flags: One list a film, in the order of `FLAGS`; mostly empty.
        thresholds: By flag.
    """

    flags: list[list[str]]
    thresholds: dict[str, Threshold]


def flag_dataset(manifest: pa.Table, *, fit: Fit = "squash") -> FlagResult:
    """Flag the films of a dataset that is being written.

    Args:
        manifest: With the columns of `MEASURES` and `ORIENTATION_MEASURES`, ``tint``, ``width`` and ``height``; one
            row a film.
        fit: How films were made square; what ``pad`` filled in is no border of the film.

    Raises:
        DataError: See `flag_films`.
    """
    names = (*MEASURES, *ORIENTATION_MEASURES, "tint")
    measures = {name: manifest.column(name).to_numpy() for name in names}
    width, height = (manifest.column(name).to_numpy().astype(np.float64) for name in ("width", "height"))
    measures["elongation"] = np.maximum(width, height) / np.minimum(width, height)
    measures["film_border"] = measures.pop("border")
    if fit == "pad":
        bare = 1 - measures["film_border"]
        measures["film_border"] = np.clip(1 - bare * measures["elongation"], 0, 1)
    return flag_films(measures)


def flag_films(measures: Mapping[str, np.ndarray]) -> FlagResult:
    """Flag films by thresholds that follow the dataset between absolute bounds.

    The threshold is ``median + deviations * 1.4826 * MAD`` (minus for ``below``), clipped to the two bounds; the
    median and the MAD withstand up to half of the films being bad (Hampel 1974).

    Args:
        measures: (films,) each, finite: ``brightness``, ``contrast``, ``sharpness``, ``saturated``, ``tint`` (see
            `measure_quality` and `DecodedImage`), ``film_border`` (``border`` without what padding filled in),
            ``elongation`` (longer over shorter side of the original, 1 or more) and `ORIENTATION_MEASURES`.

    Raises:
        DataError: A measure is missing, not finite, or not as long as the others.
    """
    lengths = {name: len(values) for name, values in measures.items()}
    flags: list[list[str]] = [[] for _ in range(max(lengths.values(), default=0))]
    thresholds = {}
    for rule in _RULES:
        if rule.measure not in measures:
            raise DataError(f"measure '{rule.measure}' is missing, which flag '{rule.flag}' needs")
        values = np.asarray(measures[rule.measure], np.float64)
        if values.shape != (len(flags),) or not np.isfinite(values).all():
            raise DataError(f"measure '{rule.measure}' needs one finite number for each of the {len(flags)} film(s)")
        threshold = _threshold(rule, values)
        thresholds[rule.flag] = threshold
        beyond = values > threshold.value if rule.direction == "above" else values < threshold.value
        for film in np.flatnonzero(beyond):
            flags[film].append(rule.flag)
    return FlagResult(flags, thresholds)


def _threshold(rule: _Rule, values: np.ndarray) -> Threshold:
    median = float(np.median(values)) if len(values) else rule.mild
    mad = float(np.median(np.abs(values - median))) if len(values) else 0.0
    sign = 1 if rule.direction == "above" else -1
    wanted = median + sign * rule.deviations * _NORMAL * mad
    value = float(np.clip(wanted, min(rule.mild, rule.severe), max(rule.mild, rule.severe)))
    found_by = "median and MAD" if value == wanted else "mild bound" if value == rule.mild else "severe bound"
    return Threshold(
        measure=rule.measure,
        direction=rule.direction,
        value=value,
        found_by=found_by,
        median=median,
        mad=mad,
        deviations=rule.deviations,
        mild=rule.mild,
        severe=rule.severe,
    )
