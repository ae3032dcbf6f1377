"""How strongly two columns hang together."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_ray.data.association import cramers_v, crosstab

RANDOM = np.random.default_rng(0)


def test_a_crosstab_counts_every_pair():
    assert crosstab(["b", "a", "b"], ["x", "y", "x"]) == {"a": {"x": 0, "y": 1}, "b": {"x": 2, "y": 0}}


def test_columns_that_tell_each_other_have_a_v_of_one_and_independent_ones_next_to_nought():
    labels = RANDOM.choice(["a", "b", "c"], 900).tolist()
    assert cramers_v(labels, [label.upper() for label in labels]) == pytest.approx(1, abs=1e-6)
    independent = cramers_v(labels, RANDOM.choice(["x", "y"], 900).tolist())
    assert independent is not None and independent < 0.08


def test_v_agrees_with_scipy_where_the_bias_correction_vanishes():
    from scipy.stats.contingency import association

    labels = RANDOM.choice(["a", "b"], 100_000)
    sources = np.where(RANDOM.random(100_000) < 0.4, labels, RANDOM.choice(["a", "b", "c"], 100_000))
    counts = np.array([list(row.values()) for row in crosstab(labels.tolist(), sources.tolist()).values()])
    assert cramers_v(labels.tolist(), sources.tolist()) == pytest.approx(association(counts), abs=1e-3)


def test_one_value_has_nothing_to_hang_together_with():
    assert cramers_v(["a", "b"], ["x", "x"]) is None


def test_a_source_of_its_own_for_every_film_tells_nothing():
    assert cramers_v(["a", "b"] * 30, [str(number) for number in range(60)]) is None
