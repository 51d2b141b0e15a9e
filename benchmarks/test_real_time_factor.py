"""Real-time factor of whole signals and streams with the built-in prior: `pytest benchmarks/test_real_time_factor.py`.

The column `extra_info.real_time_factor` is seconds of computing per second of audio, from the fastest round.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import udse_fast
from udse_fast.evaluation.metrics import si_sdr

EXAMPLE = Path(udse_fast.__file__).parent / "examples"
SAMPLERS = ["amortised_ddrm", "ddrm", "diffuseen", "udiffse_plus", "depse_il", "depse_tl"]  # the default first


@pytest.fixture(scope="module")
def repeats(request: pytest.FixtureRequest) -> int:
    return 1 if request.config.getoption("benchmark_disable") else 2


@pytest.fixture(scope="module")
def noisy(repeats: int) -> np.ndarray:
    audio, _ = soundfile.read(EXAMPLE / "noisy.flac", dtype="float32")
    return np.tile(audio, repeats)


@pytest.fixture(scope="module")
def clean(repeats: int) -> np.ndarray:
    audio, _ = soundfile.read(EXAMPLE / "clean.flac", dtype="float32")
    return np.tile(audio, repeats)


def report(benchmark, seconds: float) -> None:
    if benchmark.stats:  # None with --benchmark-disable
        benchmark.extra_info["real_time_factor"] = benchmark.stats.stats.min / seconds


@pytest.mark.benchmark(group="whole signal, default settings")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_enhance(benchmark, noisy: np.ndarray, clean: np.ndarray, sampler: str) -> None:
    enhancer = udse_fast.Enhancer(sampler=sampler)
    out = benchmark.pedantic(enhancer.enhance, (noisy, 16000), rounds=5, warmup_rounds=1)
    assert si_sdr(clean, out) > si_sdr(clean, noisy) + 2  # no number for a run that does not enhance
    report(benchmark, len(noisy) / 16000)


@pytest.mark.benchmark(group="stream, default settings")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "blocks of 2 s"])
def test_stream(benchmark, noisy: np.ndarray, causal: bool) -> None:
    enhancer = udse_fast.Enhancer()

    def run() -> np.ndarray:
        stream = enhancer.open_stream(16000, causal=causal)
        chunks = [stream.process(noisy[i : i + 1600]) for i in range(0, len(noisy), 1600)]
        return np.concatenate([*chunks, stream.flush()])

    out = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    assert out.shape == noisy.shape
    assert np.isfinite(out).all()
    report(benchmark, len(noisy) / 16000)
