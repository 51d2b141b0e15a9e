"""What networks are told beside state and time: cut, joined, checked; and a condition that nobody knew before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from udse_fast.checkpoints.checkpoint import complete_config
from udse_fast.checkpoints.export import export_network
from udse_fast.errors import UdseError
from udse_fast.networks.base import Network
from udse_fast.networks.conditions import NOTHING, Conditions, told
from udse_fast.networks.optimised import optimise
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.prior import NetworkPrior
from udse_fast.sampling.likelihoods.diffuseen import DiffUSEEN
from udse_fast.sampling.passes import gather, run
from udse_fast.sampling.posterior import SamplerSettings, posterior_pass, posterior_sample
from udse_fast.sampling.samplers import SAMPLERS, Sampler
from udse_fast.sampling.sde import OUVE

BINS = 8
SDE = OUVE()


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def config(**architecture: Any) -> dict[str, Any]:
    stft = {"n_fft": 2 * BINS - 1, "hop_length": 4}
    return complete_config({"architecture": {"name": "toy", **architecture}, "stft": stft})


# -- a condition that is new: one field, the network that reads it, and whoever gives it


@dataclass(frozen=True, eq=False)
class WithPitch(Conditions):
    pitch: Tensor | None = field(default=None, metadata=told("B T", "real", fill="replicate"))


class PitchNetwork(Network):
    """Speech is N(pitch of the frame, 0.3): D(u, a) = (0.3 u + a^2 pitch) / (0.3 + a^2)."""

    predicts = "clean"
    frame_multiple = 4
    conditions = ("pitch",)

    def conditions_of(self, tensors: Sequence[Tensor]) -> WithPitch:
        (pitch,) = tensors
        return WithPitch(pitch=pitch)

    def denoise(self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        assert isinstance(conditions, WithPitch)
        assert conditions.pitch is not None
        assert noisy.shape[-1] == conditions.pitch.shape[-1]
        assert noisy.shape[-1] % 4 == 0
        pitch = torch.stack([conditions.pitch, torch.zeros_like(conditions.pitch)], dim=1)[:, :, None]
        a2 = noise_level[:, None, None, None] ** 2
        return (0.3 * noisy + a2 * pitch) / (0.3 + a2)


def pitch_prior() -> NetworkPrior:
    return NetworkPrior(ScoreNetwork(PitchNetwork(), config()))


def by_hand(pitch: Tensor) -> Any:
    """The score of N(pitch, 0.3) in closed form."""

    def score(state: Tensor, time: Any, source: str) -> Tensor:
        delta, sigma = SDE.delta(time), SDE.sigma(time)
        return -(state - delta * pitch[:, None]) / (delta**2 * 0.3 + sigma**2)

    return score


def test_a_new_condition_reaches_its_network_through_passes_that_share_calls() -> None:
    prior, settings = pitch_prior(), SamplerSettings("prior", steps=4, samples=2)
    frames = 6  # which are padded to 8
    mixtures, pitches = numbers(2, BINS, frames, dtype=torch.complex64), numbers(2, 1, frames, seed=1)
    calls = list[int]()
    evaluate = prior.speech.evaluate

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(len(arguments[0]))
        return evaluate(*arguments, **keywords)

    prior.speech.evaluate = counted  # type: ignore[method-assign]
    passes = [
        posterior_pass(x, prior, settings, conditions={"speech": WithPitch(pitch=pitch)})
        for x, pitch in zip(mixtures, pitches, strict=True)
    ]
    with torch.no_grad():
        results = run(gather(passes))
    assert calls == [4] * 8
    for x, pitch, result in zip(mixtures, pitches, results, strict=True):
        expected = posterior_sample(x, by_hand(pitch), "prior", steps=4, samples=2)
        torch.testing.assert_close(result.speech, expected.speech, rtol=1e-3, atol=1e-4)


# -- conditions of each step, from the noise model


class VarianceNetwork(Network):
    """Noise predictor that multiplies by what it is told of the noise."""

    predicts = "noise"
    conditions = ("noise_variance",)
    frame_multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def predict_noise(self, state: Tensor, time: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        assert conditions.noise_variance is not None
        return self.weight * state * (1 + conditions.noise_variance)[:, None]


@dataclass
class Telling(DiffUSEEN):
    """DiffUSEEN that tells the network its noise variance."""

    def conditions(self, source: str) -> Conditions:
        W, H = self.noise_model.variance
        return Conditions(noise_variance=(W @ H)[None])


def test_a_likelihood_tells_the_network_what_it_has_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "telling", Sampler(Telling, "nmf"))
    seen = list[Tensor]()
    network = VarianceNetwork()
    predict = network.predict_noise

    def noted(state: Tensor, time: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        assert conditions.noise_variance is not None
        seen.append(conditions.noise_variance)
        return predict(state, time, conditions)

    network.predict_noise = noted  # type: ignore[method-assign]
    prior = NetworkPrior(ScoreNetwork(network, config()))
    x = numbers(BINS, 4, dtype=torch.complex64)
    W, H = numbers(BINS, 2, seed=3).abs(), numbers(2, 4, seed=4).abs()
    posterior = posterior_sample(x, prior, "telling", steps=3, samples=2, initial_nmf=(W, H))
    assert len(seen) == posterior.score_evaluations == 6
    torch.testing.assert_close(seen[0], (W @ H).expand(2, -1, -1))
    assert torch.equal(seen[2], seen[3])  # corrector and predictor of one step
    assert not torch.equal(seen[1], seen[2])  # an M-step lies between
    assert posterior.W is not None
    assert posterior.H is not None
    assert not torch.equal(seen[-1][0], posterior.W @ posterior.H)


@pytest.mark.parametrize("file", ["a.pt", "a.pt2"])
def test_an_exported_graph_takes_the_conditions_after_the_time(file: str, tmp_path: Path) -> None:
    network = ScoreNetwork(VarianceNetwork(), config())
    state, variance = numbers(2, BINS, 64, dtype=torch.complex64), numbers(2, BINS, 64, seed=1).abs()
    time = torch.tensor([0.3, 0.8])
    graph = network.plain
    if file == "a.pt2":
        export_network(network, tmp_path / file)
        graph = torch.export.load(tmp_path / file).module()
    else:
        inputs = tuple(network.module.example(2, BINS, 12))
        with pytest.warns(DeprecationWarning, match="deprecated"):
            graph = torch.jit.trace_module(graph, {"forward": inputs}, check_trace=False)
    planes = torch.view_as_real(state).movedim(-1, 1)
    expected = network.score(state, time, noise_variance=variance)
    result = graph(planes, time, variance)
    torch.testing.assert_close(torch.complex(result[:, 0], result[:, 1]), expected)


def test_an_optimised_network_is_told_the_same() -> None:
    network = ScoreNetwork(VarianceNetwork(), config())
    state, variance = numbers(2, BINS, 6, dtype=torch.complex64), numbers(2, BINS, 6, seed=1).abs()
    for time in (0.5, torch.linspace(0.2, 0.9, 6).expand(2, 6)):
        expected = network.score(state, time, noise_variance=variance)
        torch.testing.assert_close(optimise(network).score(state, time, noise_variance=variance), expected)


# -- what does not fit is one line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "expected the condition noise_variance"),
        ({"video": torch.zeros(2, 3, 5)}, "expected no video"),
        (
            {"noise_variance": torch.zeros(2, BINS, 5)},
            r"noise_variance: expected real numbers of the shape \(2, 8, 6\)",
        ),
        ({"noise_variance": torch.zeros(3, BINS, 6)}, "noise_variance: expected real"),
        ({"noise_variance": torch.zeros(2, BINS, 6, dtype=torch.complex64)}, "noise_variance: expected real"),
        ({"noise_variance": 3.0}, "noise_variance: expected real"),
    ],
)
def test_what_the_network_does_not_know_or_lacks_is_one_line(given: dict[str, Any], said: str) -> None:
    network = ScoreNetwork(VarianceNetwork(), config())
    with pytest.raises(UdseError, match=said) as error:
        network.score(numbers(2, BINS, 6, dtype=torch.complex64), 0.5, **given)
    assert "\n" not in str(error.value)


def test_a_function_is_told_nothing_but_state_time_and_source() -> None:
    given = {"speech": Conditions(video=torch.zeros(1, 3, 5))}
    with pytest.raises(UdseError, match="told video, got a function"):
        posterior_sample(numbers(3, 4, dtype=torch.complex64), lambda s, t, _: -s, steps=1, conditions=given)


# -- cut, joined, moved


def everything(batch: int, frames: int = 6) -> Conditions:
    return Conditions(
        label=torch.ones(batch, dtype=torch.long),
        noisy=numbers(batch, BINS, frames, dtype=torch.complex64),
        video=numbers(batch, 3, 5),
        noise_variance=numbers(batch, BINS, frames),
    )


def test_frames_cut_what_goes_by_frames() -> None:
    whole = everything(2)
    part = whole.frames(1, 3)
    assert whole.noisy is not None
    assert torch.equal(part.noisy, whole.noisy[..., 1:4])  # type: ignore[arg-type]
    assert part.noise_variance.shape == (2, BINS, 3)  # type: ignore[union-attr]
    assert part.video is whole.video
    assert part.latent is None


def test_batches_are_joined_in_order_and_only_where_they_are_alike() -> None:
    one, two = everything(1), everything(2)
    joined = Conditions.cat([one, two])
    assert joined.given == ("label", "noisy", "video", "noise_variance")
    assert torch.equal(joined.noisy[1:], two.noisy)  # type: ignore[index, arg-type]
    assert one.form == two.form != everything(1, 7).form
    with pytest.raises(UdseError, match="the same in all items"):
        Conditions.cat([one, NOTHING])


def test_one_item_is_repeated_for_the_batch_and_more_are_not() -> None:
    assert [t.shape[0] for t in everything(1).repeat(4).tensors] == [4] * 4
    assert [t.shape[0] for t in everything(2).repeat(2).tensors] == [2] * 4


def test_moving_keeps_kinds() -> None:
    double = everything(1).to(dtype=torch.float64)
    assert [t.dtype for t in double.tensors] == [torch.int64, torch.complex128, torch.float64, torch.float64]


def test_what_is_said_later_wins() -> None:
    merged = everything(2).merged(Conditions(video=torch.zeros(2, 1, 1)))
    assert merged.given == everything(2).given
    assert merged.video.shape == (2, 1, 1)  # type: ignore[union-attr]
    assert NOTHING.merged(merged) is merged
    assert merged.merged(NOTHING) is merged
