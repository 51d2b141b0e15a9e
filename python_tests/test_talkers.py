"""Measures of separated talkers against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from udse_fast.errors import UdseError
from udse_fast.evaluation.talkers import improvements, in_true_order

RATE = 16000


def orthogonal(count: int) -> np.ndarray:
    """Signals (count, L) of power 1 that do not resemble each other."""
    time = np.arange(RATE) / RATE
    return np.sqrt(2) * np.stack([np.sin(2 * np.pi * 100 * (k + 1) * time) for k in range(count)])


def test_an_estimate_with_a_tenth_of_the_other_gains_20_db() -> None:
    a, b, c = orthogonal(3)
    found = improvements([a, b], [b + 0.1 * a, 0.5 * (a + 0.1 * c)], a + b)
    assert found == pytest.approx([20, 20], abs=1e-6)


def test_the_mixture_gains_nothing() -> None:
    a, b = orthogonal(2)
    assert improvements([a, b], [a + b, a + b], a + b) == pytest.approx([0, 0], abs=1e-9)


def test_the_order_of_a_piece_is_the_best() -> None:
    a, b = orthogonal(2)
    cut = 3 * RATE // 4
    swapped = [np.concatenate([a[:cut], b[cut:]]), np.concatenate([b[:cut], a[cut:]])]
    np.testing.assert_array_equal(in_true_order([a, b], swapped, RATE // 4), [a, b])
    np.testing.assert_array_equal(in_true_order([a, b], swapped, RATE), swapped)


def test_a_talker_too_few_is_one_line() -> None:
    a, b = orthogonal(2)
    with pytest.raises(UdseError, match="as many estimates as talkers, got 1 and 2"):
        improvements([a, b], [a], a + b)
