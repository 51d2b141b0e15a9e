"""Measures of separated talkers against closed forms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

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


def test_mixtures_of_the_benchmark_have_the_levels_that_it_says(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "separation.py"
    spec = importlib.util.spec_from_file_location("separation_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark  # dataclasses look their module up
    spec.loader.exec_module(benchmark)
    rng = np.random.default_rng(0)
    for name, length in (("a", 9000), ("b", 8000), ("n", 12000)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(length), RATE)
    paths = tuple(tmp_path / f"{name}.wav" for name in "abn")
    mixture = benchmark.mixed("a+b", "matched", paths, 2.0, 0.4)
    first, second = mixture.talkers
    both = first + second
    assert len(mixture.sum) == 6400
    assert 10 * np.log10((second @ second) / (first @ first)) == pytest.approx(2.0)
    assert 10 * np.log10((both @ both) / (mixture.noise @ mixture.noise)) == pytest.approx(5.0)
    rows = [
        benchmark.scored("s", mixture, [second + 1e-4 * first, first + 1e-4 * second], 0.8),
        benchmark.scored("s", mixture, [both, both], 0.8),
    ]
    assert rows[0]["talker_1"] > 50 > rows[1]["talker_1"]
    assert rows[0]["as_named"] < 0
    assert rows[0]["cpu_seconds"] == pytest.approx(2.0)
    assert benchmark.summary(rows).startswith("| s | 2 | ")
