"""On a real CUDA device: dispatch, the CPU's noise, CUDA graphs, 16-bit networks, whole samplers."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from udse_fast.audio.spectral import Spectral
from udse_fast.backends.cuda_graphs import MAX_RECORDINGS
from udse_fast.backends.dispatch import backends
from udse_fast.block_enhancer import OverlapBlockEnhancer, enhance_blocks
from udse_fast.enhancer import Enhancer
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey, complex_normal
from udse_fast.kernels.convolution import choice
from udse_fast.kernels.predictor_corrector import predictor
from udse_fast.kernels.step import Step
from udse_fast.networks.ncsnpp import NCSNpp
from udse_fast.networks.optimised import optimise
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.posterior import posterior_sample
from udse_fast.sampling.samplers import SAMPLERS
from udse_fast.sampling.sde import OUVE
from udse_fast.streaming.blocks import Block
from udse_fast.training.batches import Batches
from udse_fast.training.corpus import Corpus, recordings_in
from udse_fast.training.trainer import Settings, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.needs("cuda"),
]
OF_PRIORS = [name for name, row in SAMPLERS.items() if row.network == "prior"]
C = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30)


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 means float32: cuDNN's default for convolutions keeps 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.cpu() - b.cpu()).norm() / b.cpu().norm())


@pytest.fixture
def network() -> ScoreNetwork:
    """Small, with weights that all matter."""
    torch.manual_seed(0)
    module = NCSNpp(nf=32, ch_mult=(1, 2), joint=True)
    for parameter in module.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    config = {
        "architecture": {"name": "ncsnpp", "joint": True},
        "sde": OUVE().config,
        "stft": {"n_fft": 63, "hop_length": 16, "window": "hann", "sample_rate": 16000},
    }
    return ScoreNetwork(module, config)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_backend_takes_cuda_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {b.name: b for b in backends()}[name]
    if not state.available:
        pytest.skip(state.detail)
    monkeypatch.setenv("UDSE_BACKEND", name)
    key = NoiseKey(7, "predictor_speech", 3, 5, 1)
    s, S = torch.randn(2, 2, 33, 65, dtype=torch.complex64)
    result = predictor(Step(s.cuda(), S.cuda(), C, key))
    monkeypatch.setenv("UDSE_BACKEND", "reference")
    torch.testing.assert_close(result.cpu(), predictor(Step(s, S, C, key)), rtol=0, atol=1e-5)


def test_a_seed_gives_the_same_noise_on_both_devices() -> None:
    key = NoiseKey(2**63 + 1, "dither", 2**31, 2**40, 1)
    numbers = complex_normal(key, (2, 33, 65), device="cuda")
    torch.testing.assert_close(numbers.cpu(), complex_normal(key, (2, 33, 65)), rtol=0, atol=2e-6)


def test_replayed_calls_are_the_eager_ones(network: ScoreNetwork) -> None:
    fast = optimise(network).to("cuda")
    for frames in (40, 64, 40, 90, 130, 200, 260, 40):  # more shapes than are kept; the second call is recorded
        state = torch.randn(2, 32, frames, dtype=torch.complex64)
        for time in (0.9, 0.2):
            first = fast.score(state.cuda(), time, torch.tensor([0, 1]))
            kept = first.clone()
            assert relative(first, network.score(state, time, torch.tensor([0, 1]))) < 5e-4  # sums in another order
            fast.score(state.cuda(), 0.5, 1)
            assert torch.equal(first, kept)  # a later replay does not write into an earlier result
    assert 0 < len(fast.graph._calls._recordings) <= MAX_RECORDINGS


def test_recordings_go_on_when_all_earlier_ones_are_gone(network: ScoreNetwork) -> None:
    """The allocator refuses a pool whose graphs are all gone, which would be a warning, and a slow Enhancer."""
    state = torch.randn(1, 32, 64, dtype=torch.complex64)
    expected = network.score(state, 0.5, 1)
    for _ in range(3):
        fast = optimise(network).to("cuda")
        for _ in range(3):
            assert relative(fast.score(state.cuda(), 0.5, 1), expected) < 5e-4
        assert len(fast.graph._calls._recordings) == 1
        del fast
        gc.collect()


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.1), ("float16", 0.01)])
def test_sixteen_bits_are_close(network: ScoreNetwork, precision: str, tolerance: float) -> None:
    if precision == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bfloat16 on this device")
    state = torch.randn(2, 32, 64, dtype=torch.complex64)
    expected = network.score(state, 0.5, 1)
    with torch.inference_mode():
        fast = optimise(network).to("cuda", precision)
        assert relative(fast.score(state.cuda(), 0.5, 1), expected) < tolerance
    assert relative(fast.score(state.cuda(), 0.5, 1), expected) < tolerance  # captured in inference mode, used outside


@pytest.mark.parametrize("switch", ["own", "auto"])
def test_own_convolutions_are_close_and_chosen_by_shape(
    network: ScoreNetwork, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.randn(2, 32, 64, dtype=torch.complex64)
    expected = network.score(state, 0.5, 1)
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "_broken", set())
    monkeypatch.setenv("UDSE_CONVOLUTION", switch)
    fast = optimise(network).to("cuda", "float16")
    for _ in range(3):  # as it is, recorded, replayed
        assert relative(fast.score(state.cuda(), 0.5, 1), expected) < 0.01
    assert not choice._broken
    assert (switch == "auto") == bool(choice._chosen)


@pytest.mark.parametrize("name", OF_PRIORS)
def test_sampler_gives_what_it_gives_on_the_cpu(name: str) -> None:
    sde = OUVE()
    mixture = torch.randn(33, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    mixture = mixture / mixture.abs().max()

    def score(state: torch.Tensor, time: float, source: str) -> torch.Tensor:
        return -state / (sde.delta(time) ** 2 * (0.1 if source == "speech" else 0.2) + sde.sigma(time) ** 2)

    expected = posterior_sample(mixture, score, name, steps=6, samples=3, em_rounds=2, seed=5)
    result = posterior_sample(mixture.cuda(), score, name, steps=6, samples=3, em_rounds=2, seed=5)
    assert relative(result.signals, expected.signals) < 1e-4


def test_training_draws_the_same_when_it_goes_on(tmp_path: Path) -> None:
    """On the device, as functions of seed and step; the weights are those of the uninterrupted run up to rounding."""
    n = np.arange(32000) / 16000
    for speaker in range(3):
        tone = 0.5 * np.sin(2 * np.pi * (150 + 40 * speaker) * n) * np.sin(2 * np.pi * 3 * n) ** 2
        soundfile.write(tmp_path / f"s{speaker}.wav", tone, 16000)
    spectral = Spectral(hop_length=255, window="sqrt_hann")
    architecture = {
        "name": "compact", "channels": [8, 8], "blocks": [1, 1], "frame_channels": 16, "dilations": [1],
        "sigma_data": 0.1,
    }  # fmt: skip

    def trainer(name: str) -> Trainer:
        batches = Batches(Corpus(recordings_in(tmp_path), 16000), None, spectral, size=2, frames=32)
        settings = Settings(architecture, spectral, steps=60, batch_size=2, crop_seconds=0.5)
        device, precision = torch.device("cuda"), torch.float32
        return Trainer(
            settings, batches, batches, tmp_path / name, device=device, precision=precision, facts={}, licence="none"
        )

    whole, first = trainer("whole.safetensors"), trainer("parts.safetensors")
    whole.run(save_minutes=60, validate_minutes=60, progress=False)
    for number in range(30):
        first.train_step(first._batch(number))
    first.save()
    second = trainer("parts.safetensors")
    second.resume()
    shape = torch.Size((2, 256, 32))
    for one, other in zip(whole._noise(shape, 30, 0), second._noise(shape, 30, 0), strict=True):
        assert one.is_cuda
        assert torch.equal(one, other)
    assert not torch.equal(whole._noise(shape, 31, 0)[1], second._noise(shape, 30, 0)[1])
    second.run(save_minutes=60, validate_minutes=60, progress=False)
    for name, average in whole.ema.items():
        if average.is_floating_point():
            torch.testing.assert_close(second.ema[name], average, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("sampler", ["diffuseen", "amortised"])
def test_enhancer_replays_whole_passes(sampler: str, tiny_checkpoint: Path) -> None:
    """Every block is what it is on the CPU, whichever call of its form it is; later blocks are launched at once."""
    if sampler == "amortised":
        checkpoint, settings = Path("posterior"), {"samples": 1}
    else:
        checkpoint, settings = tiny_checkpoint, {"steps": 3, "samples": 2}
    fast, plain = (
        Enhancer(checkpoint, sampler, device=on, precision="float32", seed=3, block_seconds=1.0, **settings)
        for on in ("cuda", "cpu")
    )
    length = OverlapBlockEnhancer(plain.model, plain.settings, plain.seed).new_blocks().block
    for block in range(4):
        signal = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(block))
        result, expected = (
            enhance_blocks([(each, [Block(signal, 63 * block, None)])])[0][0]
            for each in (OverlapBlockEnhancer(e.model, e.settings, e.seed) for e in (fast, plain))
        )
        assert relative(result.signals, expected.signals) < 5e-3
        assert result.network_calls == expected.network_calls
    assert fast.model.passes is not None
    assert len(fast.model.passes._recordings) == 1


def test_short_signals_of_all_lengths_share_a_recording(tiny_checkpoint: Path) -> None:
    fast = Enhancer(tiny_checkpoint, steps=3, samples=2, device="cuda", precision="float32", block_seconds=2.0)
    for length in (4100, 5000, 6311, 7999):
        assert fast.enhance(0.1 * torch.randn(length), 16000).shape == (length,)
    assert fast.model.passes is not None
    assert len(fast.model.passes._recordings) == 1
