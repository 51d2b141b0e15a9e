"""Resampling in the short chunks of a sound card: `pytest benchmarks/test_resampling.py`."""

from __future__ import annotations

import numpy as np
import pytest

from udse_fast.audio.resampling import Resampler


@pytest.mark.benchmark(group="resampling 1 s in chunks of 10 ms")
@pytest.mark.parametrize(("source", "target"), [(44100, 16000), (16000, 44100)])
def test_chunks_of_10_ms(benchmark, source: int, target: int) -> None:
    x = np.random.default_rng(0).standard_normal(source).astype(np.float32)

    def run() -> np.ndarray:
        resampler = Resampler(source, target)
        chunks = [resampler.process(x[at : at + source // 100]) for at in range(0, source, source // 100)]
        return np.concatenate([*chunks, resampler.flush()])

    out = benchmark(run)
    assert len(out) == target
    if benchmark.stats:  # None with --benchmark-disable
        benchmark.extra_info["real_time_factor"] = benchmark.stats.stats.min
