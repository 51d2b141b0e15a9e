"""`posterior_sample`: one sampler on one spectrogram. `posterior_pass`: the same as a pass that can share its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from udse_fast.backends.cuda_graphs import Replayed, WholePass
from udse_fast.checks import Range, flag, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.networks.conditions import Conditions
from udse_fast.sampling.diffusion import Callback, reverse_diffusion
from udse_fast.sampling.noise_models import NMF, NoiseModel
from udse_fast.sampling.passes import run
from udse_fast.sampling.problem import (
    Problem,
    checked_draw,
    checked_factors,
    checked_mixture,
    checked_times,
    times_for,
)
from udse_fast.sampling.randomness import Draw, counter_based
from udse_fast.sampling.requests import EStep, FunctionPrior, Pass, Prior, Score, as_prior
from udse_fast.sampling.samplers import CORRECTOR_SNR, SEEDS, Sampler, find_sampler
from udse_fast.sampling.sde import OUVE, SDE, Time, time_grid


@dataclass(frozen=True)
class SamplerSettings:
    """A sampler and how it is run: checked when it is made, then good for any number of passes.

    Args:
        sampler: a name of `sampler_names()`.
        steps: N. samples: B. rank: R of the NMF. em_rounds: rounds of UDiffSE. seed: of all draws.
        shared_steps: steps at the beginning of a reverse pass that all samples have in common, N - 1 at most: where
            the level of the noise is high, they differ little. None of the published algorithms.
        times: N decreasing times, each a float or one per frame (T,); default linspace(1, 0.03, N).
        dt: step size, one or N; default 1/N.
        corrector_snr: r of the corrector; 0 leaves it out.
        sde: forward process.
        reuse_estimate: the predictor takes the denoised estimate of the corrector's network call instead of a call of
            its own: half of the calls where there is a corrector, and none of the published algorithms.
        options: of the sampler, `SAMPLERS[name].options` lists them with their published values.

    Raises:
        UdseError: unknown sampler or option, or a number out of range.
    """

    sampler: str = "diffuseen"
    steps: int = 30
    samples: int = 4
    rank: int = 4
    em_rounds: int = 5
    seed: int = 0
    times: Sequence[Time] | None = None
    dt: float | Sequence[float] | None = None
    corrector_snr: float = 0.5
    sde: SDE = field(default_factory=OUVE)
    options: Mapping[str, Any] = field(default_factory=dict)
    reuse_estimate: bool = False
    shared_steps: int = 0

    def __post_init__(self) -> None:
        row = find_sampler(self.sampler)
        if not isinstance(self.sde, SDE):
            raise UdseError(f"sde: expected an OUVE or a VE, got {type(self.sde).__name__}")
        if unknown := sorted(self.options.keys() - row.options.keys()):
            known = ", ".join(row.options) or "none"
            raise UdseError(f"sampler {self.sampler!r}: unknown option {', '.join(unknown)}; it has: {known}")
        steps = whole_number("steps", self.steps, Range(1))
        times = time_grid(steps) if self.times is None else checked_times(self.times, self.sde.times)
        checked = {
            **{name: whole_number(name, getattr(self, name), Range(1)) for name in ("samples", "rank", "em_rounds")},
            "steps": len(times),
            "seed": whole_number("seed", self.seed, SEEDS),
            "times": tuple(times),
            "dt": _checked_dt(self._published_dt(row, times) if self.dt is None else self.dt, len(times)),
            "corrector_snr": real_number("corrector_snr", self.corrector_snr, CORRECTOR_SNR),
            "options": row.checked(dict(self.options)),
            "reuse_estimate": flag("reuse_estimate", self.reuse_estimate),
            "shared_steps": min(whole_number("shared_steps", self.shared_steps, Range(0)), len(times) - 1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _published_dt(row: Sampler, times: Sequence[Time]) -> float | list[float]:
        """1/N, or of the samplers that go by the grid the differences of the times, the last one down to 0."""
        if not row.likelihood.steps_by_grid:
            return 1 / len(times)
        if any(isinstance(t, Tensor) and t.ndim for t in times):
            raise UdseError("dt: expected a step size for each of the times, which are given per frame, got none")
        return [float(t) - float(following) for t, following in zip(times, [*times[1:], 0.0], strict=True)]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for settings with which passes do the same; times per frame are given to them as tensors."""
        assert self.times is not None
        times = tuple(None if isinstance(t, Tensor) else t for t in self.times)
        values = {**self.__dict__, "options": tuple(sorted(self.options.items())), "times": times}
        return tuple(values.values())


def _checked_dt(dt: Any, steps: int) -> float | tuple[float, ...]:
    if not isinstance(dt, (Sequence, Tensor)) or isinstance(dt, str):
        return real_number("dt", dt, Range(0, excluded=True))
    if len(dt) != steps:
        raise UdseError(f"dt: expected one step size, or one for each of the {steps} times, got {len(dt)}")
    return tuple(real_number(f"dt[{i}]", float(size), Range(0, excluded=True)) for i, size in enumerate(dt))


class Sources(dict[str, Tensor]):
    """Samples (B, F, T) complex by name of the source, in the order of the sampler."""

    @property
    def speech(self) -> Tensor:
        """Of "speech"."""
        return self["speech"]

    @property
    def noise(self) -> Tensor | None:
        """Of "noise", where the sampler estimates it."""
        return self.get("noise")


@dataclass(frozen=True)
class Posterior:
    """Posterior samples and what was fitted on the way, all in the domain of the mixture."""

    sources: Sources
    """Not finite where the pass diverged, see `diverged`."""
    noise_model: NoiseModel | None
    score_evaluations: int
    """Network calls per sample."""
    heard: Tensor | None = None
    """(F, T) complex, an estimate that a read-out averages with what it makes of the samples."""
    listening: float = 0.0
    """Its share."""

    @property
    def speech(self) -> Tensor:
        """(B, F, T) complex."""
        return self.sources.speech

    @property
    def noise(self) -> Tensor | None:
        """(B, F, T) complex, where the sampler estimates it."""
        return self.sources.noise

    @property
    def diverged(self) -> bool:
        """Whether the pass ended in NaN or infinity."""
        return not all(torch.isfinite(torch.view_as_real(state)).all() for state in self.sources.values())

    @property
    def W(self) -> Tensor | None:
        """(F, R) NMF basis."""
        return self.noise_model.W if isinstance(self.noise_model, NMF) else None

    @property
    def H(self) -> Tensor | None:
        """(R, T) NMF activations."""
        return self.noise_model.H if isinstance(self.noise_model, NMF) else None


def posterior_sample(
    mixture: Tensor,
    score: Score | EStep | Prior,
    sampler: str = "diffuseen",
    *,
    steps: int = 30,
    samples: int = 4,
    rank: int = 4,
    em_rounds: int = 5,
    randomness: Draw | None = None,
    seed: int = 0,
    first_frame: int = 0,
    initial_nmf: tuple[Tensor, Tensor] | None = None,
    noise_model: NoiseModel | None = None,
    times: Sequence[Time] | None = None,
    dt: float | Sequence[float] | None = None,
    corrector_snr: float = 0.5,
    sde: SDE | None = None,
    reuse_estimate: bool = False,
    shared_steps: int = 0,
    conditions: Mapping[str, Conditions] | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Posterior:
    """Draw speech from the posterior given the mixture. No gradients are kept.

    Args:
        mixture: x (F, T) complex64 or complex128, compressed and divided by its largest modulus.
            For "sgmse": y, (F, T) or one for each sample (B, F, T), which is not normalised again.
        score: score(state (B, F, T), time, source) -> (B, F, T), or a `Prior`; time is a float or (T,); source the
            name of one, "speech" or "noise".
            For "sgmse": of one that knows the recording.
            For "amortised": e_step(mixture, noise variance) -> `udse_fast.networks.estimate.Estimate`, see `EStep`.
        sampler: a name of `sampler_names()`.
        steps, samples, rank, em_rounds, seed, times, dt, corrector_snr, sde, reuse_estimate, shared_steps, options:
            see `SamplerSettings`.
        randomness: draw(name, index) -> complex normal (B, F, T); default: counter-based, from `seed`.
        first_frame: of the default randomness; the absolute number of the first frame.
        initial_nmf: W (F, R), H (R, T); default: random with mean(W H) = mean |x|^2.
        noise_model: instead of NMF: `FixedVariance` (oracle modes) or any other `NoiseModel`.
        conditions: by source, what the network is told beside state and time.
        callback: called with a `StepInfo` in every step.

    Returns:
        Posterior.

    Raises:
        UdseError: unknown sampler or option, wrong shape or dtype, mixture that is not finite, diverged pass.
    """
    if isinstance(mixture, Tensor) and mixture.ndim == 3:
        samples = len(mixture)
    settings = SamplerSettings(
        sampler,
        steps,
        samples,
        rank,
        em_rounds,
        seed,
        times,
        dt,
        corrector_snr,
        OUVE() if sde is None else sde,
        options,
        reuse_estimate,
        shared_steps,
    )
    with torch.no_grad():
        posterior = run(
            posterior_pass(
                mixture,
                score,
                settings,
                randomness=randomness,
                first_frame=first_frame,
                initial_nmf=initial_nmf,
                noise_model=noise_model,
                conditions=conditions,
                callback=callback,
            )
        )
        if posterior.diverged:
            raise divergence(settings)
        return posterior


def divergence(settings: SamplerSettings, precision: str = "float32") -> UdseError:
    """The error of a pass that ended in NaN or infinity, with a network that computes in a precision."""
    or_precision = ", or precision='float32', as the network computes in float16" if precision == "float16" else ""
    return UdseError(
        f"sampler {settings.sampler!r}: the reverse pass diverged with {settings.steps} steps; "
        f"give more steps or less guidance{or_precision}"
    )


class Outcome(NamedTuple):
    """What a pass ends with; tensors, and numbers that depend on its form only, so that it can be replayed."""

    calls: int
    states: tuple[Tensor, ...]
    """Of the likelihood's sources."""
    noise: Tensor | None
    heard: Tensor | None
    factors: tuple[Tensor, ...]
    """W and H of a noise model that is an NMF."""

    @property
    def flat(self) -> tuple[Any, ...]:
        """Without tuples in it, as a graph gives it out."""
        return self.calls, self.noise, self.heard, *self.factors, *self.states

    @classmethod
    def of(cls, flat: Sequence[Any], factors: int) -> Outcome:
        """From its flat form, of which so many are factors."""
        calls, noise, heard, *tensors = flat
        return cls(calls, tuple(tensors[factors:]), noise, heard, tuple(tensors[:factors]))


def posterior_pass(
    mixture: Tensor,
    score: Score | EStep | Prior,
    settings: SamplerSettings,
    *,
    randomness: Draw | None = None,
    first_frame: int = 0,
    initial_nmf: tuple[Tensor, Tensor] | None = None,
    noise_model: NoiseModel | None = None,
    conditions: Mapping[str, Conditions] | None = None,
    replayed: Replayed | None = None,
    callback: Callback | None = None,
) -> Pass[Posterior]:
    """`posterior_sample` as a pass: it yields the network calls that are due, see `udse_fast.sampling.passes`.

    A pass that diverges is no error: its `Posterior` says so.

    Args:
        replayed: runs the pass from CUDA graphs where it can: default randomness, NMF or a noise prior, no callback;
            `score` must be the same in every call.

    The others are those of `posterior_sample`.
    """
    row = find_sampler(settings.sampler)
    prior, mixture = as_prior(score), checked_mixture(mixture, batched=row.told_recording)
    if row.likelihood.needs_posterior_network and isinstance(prior, FunctionPrior):
        raise UdseError(
            f"sampler {settings.sampler!r}: expected a prior that knows a posterior network too "
            "(udse_fast.prior.NetworkPrior with `posterior`), got a function"
        )
    if mixture.ndim == 3 and len(mixture) != settings.samples:
        raise UdseError(
            f"samples: expected {len(mixture)}, one for each recording of the batch, got {settings.samples}"
        )
    if mixture.ndim == 3 and settings.shared_steps:
        raise UdseError(f"shared_steps: expected 0 for a batch of recordings, got {settings.shared_steps}")
    if row.noise == "nmf" and noise_model is None:
        if initial_nmf is None:
            noise_model = NMF(*row.likelihood.start_noise(mixture, settings.rank, settings.seed, 1.0))
        else:
            noise_model = NMF(*checked_factors(initial_nmf, mixture))
    if noise_model is not None and not isinstance(noise_model, NoiseModel):
        raise UdseError(f"noise_model: expected one with `variance` and `fit`, got {type(noise_model).__name__}")
    nmf = noise_model if isinstance(noise_model, NMF) else None
    draw = None if randomness is None else checked_draw(randomness, (settings.samples, *mixture.shape[-2:]), mixture)
    start = ReversePass(prior, settings, draw, noise_model, dict(conditions or {}), callback)

    factors: tuple[Tensor, ...] = () if nmf is None else nmf.variance
    told = (x for by_source in start.conditions.values() for x in by_source.tensors)
    given = *factors, *told, *per_frame(settings, mixture)
    outcome: Outcome
    if replayed is not None and randomness is None and callback is None and noise_model is nmf:
        frame = torch.full((), first_frame, device=mixture.device)  # read by the graph
        (flat,) = yield [WholePass(replayed, start.key, start.flat, (mixture, frame, *given))]
        outcome = Outcome.of(flat, len(factors))
    else:
        outcome = yield from start(mixture, first_frame, *given)
    if nmf is not None:
        nmf.W, nmf.H = outcome.factors
    sources = Sources(zip(row.likelihood.sources, outcome.states, strict=True))
    if outcome.noise is not None:
        sources["noise"] = outcome.noise
    listening = {**row.options, **settings.options}.get("listening", 0.0)
    return Posterior(sources, noise_model, outcome.calls, outcome.heard, listening)


def per_frame(settings: SamplerSettings, mixture: Tensor) -> tuple[Tensor, ...]:
    """The times that are not one for all frames, (K, T), as the last tensor of a pass; nothing where there are none.

    Raises:
        UdseError: they do not fit the mixture (F, T).
    """
    assert settings.times is not None
    rows = [t for t in times_for(settings.times, mixture) if isinstance(t, Tensor)]
    return (torch.stack(rows),) if rows else ()


@dataclass(frozen=True)
class ReversePass:
    """A pass without its tensors: called with them, it starts."""

    prior: Prior
    settings: SamplerSettings
    draw: Draw | None = None
    """None: counter-based, from the seed and the number of the first frame."""
    noise_model: NoiseModel | None = None
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
    callback: Callback | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for those that do the same with the same tensors."""
        iterations = self.noise_model.iterations if isinstance(self.noise_model, NMF) else None
        names = tuple((source, c.given) for source, c in self.conditions.items())
        return self.prior, self.settings.key, iterations, names

    def flat(self, mixture: Tensor, first_frame: Tensor, *tensors: Tensor) -> Pass[tuple[Any, ...]]:
        """Start; the outcome is flat at the end."""
        outcome = yield from self(mixture, first_frame, *tensors)
        return outcome.flat

    def __call__(self, mixture: Tensor, first_frame: int | Tensor, *tensors: Tensor) -> Pass[Outcome]:
        """Start; `tensors` are W and H, where the noise model is an NMF, those of the conditions, and `per_frame`."""
        rest, settings, model = iter(tensors), self.settings, self.noise_model
        if isinstance(model, NMF):
            model = NMF(next(rest), next(rest), model.iterations)
        conditions = {source: c.mapped(lambda _: next(rest)) for source, c in self.conditions.items()}
        problem = Problem(mixture, self.prior, model, settings.em_rounds, conditions)
        likelihood = find_sampler(settings.sampler).likelihood(problem, **settings.options)
        frames = (row for rows in rest for row in rows)
        assert settings.times is not None
        assert settings.dt is not None
        states = yield from reverse_diffusion(
            likelihood,
            samples=settings.samples,
            times=[next(frames) if isinstance(t, Tensor) else t for t in settings.times],
            dt=settings.dt,
            draw=self.draw or counter_based(settings.seed, first_frame),
            sde=settings.sde,
            corrector_snr=settings.corrector_snr,
            reuse_estimate=settings.reuse_estimate,
            shared_steps=settings.shared_steps,
            callback=self.callback,
        )
        factors = model.variance if isinstance(model, NMF) else ()
        return Outcome(
            problem.calls.answered,
            tuple(states.values()),
            likelihood.noise_estimate(states),
            likelihood.heard(),
            factors,
        )
