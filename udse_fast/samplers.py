"""The samplers by name, with their published settings, and `posterior_sample`: one of them on one spectrogram."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udse_fast.cuda_graphs import Replayed, WholePass
from udse_fast.diffusion import Likelihood, Pass, Score, reverse_diffusion
from udse_fast.errors import UdseError
from udse_fast.likelihoods.ddrm import DDRM
from udse_fast.likelihoods.depse import DEPSEIL, DEPSETL
from udse_fast.likelihoods.diffuseen import DiffUSEEN
from udse_fast.likelihoods.paradiffuse import ParaDiffUSEEN, ParaDiffUSEIN
from udse_fast.likelihoods.udiffse import UDiffSE, UDiffSEPlus
from udse_fast.likelihoods.unconditional import Unconditional
from udse_fast.lockstep import run
from udse_fast.noise_models import NMF, NoiseModel, start_nmf
from udse_fast.randomness import Draw, counter_based
from udse_fast.sde import OUVE, Time, time_grid


@dataclass(frozen=True)
class Sampler:
    """A row of the table: which likelihood, and what it needs."""

    paper: str
    likelihood: Callable[..., Likelihood]
    noise: str | None
    """Where the noise comes from: "nmf", "score" (a noise prior) or None."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the sampler with their published values."""
        given = {"mixture", "noise_model", "score", "times", "em_rounds"}
        parameters = inspect.signature(self.likelihood).parameters
        return {name: p.default for name, p in parameters.items() if name not in given}


SAMPLERS: dict[str, Sampler] = {
    "udiffse": Sampler("Nortier, Sadeghi, Serizel, ICASSP 2024", UDiffSE, "nmf"),
    "udiffse_plus": Sampler("Ayilo, Sadeghi, Serizel, Alameda-Pineda, ICASSP 2025", UDiffSEPlus, "nmf"),
    "depse_il": Sampler("Ayilo, Sadeghi, Serizel, Alameda-Pineda, 2025", DEPSEIL, "nmf"),
    "depse_tl": Sampler("Ayilo, Sadeghi, Serizel, Alameda-Pineda, 2025", DEPSETL, "nmf"),
    "diffuseen": Sampler("Ayilo, Sadeghi, Serizel, Alameda-Pineda, 2025", DiffUSEEN, "nmf"),
    "paradiffuse_in": Sampler("Ayilo, Sadeghi, Serizel, Alameda-Pineda, 2025", ParaDiffUSEIN, "score"),
    "paradiffuse_en": Sampler("Ayilo, Sadeghi, Serizel, Alameda-Pineda, 2025", ParaDiffUSEEN, "score"),
    "ddrm": Sampler("Kawar, Elad, Ermon, Song, NeurIPS 2022, with NMF-IS", DDRM, "nmf"),
    "prior": Sampler("Song et al., ICLR 2021", Unconditional, None),
}


def sampler_names() -> list[str]:
    """Names that `Enhancer` and `posterior_sample` know."""
    return list(SAMPLERS)


def find_sampler(name: str) -> Sampler:
    """The row of the table, or one line that lists the names."""
    if name not in SAMPLERS:
        raise UdseError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")
    return SAMPLERS[name]


def recommended_sampler(config: dict[str, Any]) -> str:
    """The one that a checkpoint's configuration asks for, else the best of the published ones."""
    sampler: str = config.get("inference", {}).get("sampler", "diffuseen")
    return sampler


@dataclass(frozen=True)
class Posterior:
    """Posterior samples and what was fitted on the way, all in the domain of the mixture."""

    speech: Tensor
    """(B, F, T) complex."""
    noise: Tensor | None
    """(B, F, T) complex, where the sampler estimates it."""
    noise_model: NoiseModel | None
    score_evaluations: int
    """Network calls per sample."""

    @property
    def W(self) -> Tensor | None:
        """(F, R) NMF basis."""
        return self.noise_model.W if isinstance(self.noise_model, NMF) else None

    @property
    def H(self) -> Tensor | None:
        """(R, T) NMF activations."""
        return self.noise_model.H if isinstance(self.noise_model, NMF) else None


def posterior_pass(
    mixture: Tensor,
    score: Score,
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
    dt: float | None = None,
    corrector_snr: float = 0.5,
    corrected_sources: Sequence[str] = ("speech", "noise"),
    sde: OUVE | None = None,
    replayed: Replayed | None = None,
    **options: Any,
) -> Pass[Posterior]:
    """Draw speech from the posterior given the mixture.

    Args:
        mixture: x (F, T) complex64 or complex128, compressed and divided by its largest modulus.
        score: score(state (B, F, T), time, source) -> (B, F, T); time is a float or (T,); source "speech" | "noise".
        sampler: a name of `sampler_names()`.
        steps: N. samples: B. rank: R of the NMF. em_rounds: rounds of UDiffSE.
        randomness: draw(name, index) -> complex normal (B, F, T); default: counter-based, from `seed`.
        seed, first_frame: of the default randomness; the absolute number of the first frame.
        initial_nmf: W (F, R), H (R, T); default: random with mean(W H) = mean |x|^2.
        noise_model: instead of NMF: `FixedVariance` (oracle modes) or any other `NoiseModel`.
        times: N decreasing times, each a float or one per frame (T,); default linspace(1, 0.03, N).
        dt: step size; default 1/N.
        corrector_snr: r of the corrector; 0 leaves it out.
        corrected_sources: ("speech", "noise"), or fewer.
        sde: default: the published constants.
        replayed: runs the pass from CUDA graphs where it can: default randomness, NMF or a noise prior; `score` must
            be the same function in every call.
        options: of the sampler, `SAMPLERS[name].options` lists them with their published values.

    Yields:
        The network calls that are due, see `udse_fast.lockstep`.

    Returns:
        Posterior.

    Raises:
        UdseError: unknown sampler or option, wrong shape or dtype, mixture that is not finite, diverged pass.
    """
    row = find_sampler(sampler)
    _check(mixture, steps, samples, rank, em_rounds)
    unknown = set(options) - set(row.options)
    if unknown:
        known = ", ".join(row.options) or "none"
        raise UdseError(f"sampler {sampler!r}: unknown option {', '.join(sorted(unknown))}; it has: {known}")
    sde = sde or OUVE()
    times = time_grid(steps) if times is None else list(times)
    if row.noise == "nmf" and noise_model is None:
        W, H = initial_nmf if initial_nmf is not None else start_nmf(mixture, rank, seed)
        noise_model = NMF(W.to(mixture.real), H.to(mixture.real))
    nmf = noise_model if isinstance(noise_model, NMF) else None
    wanted = inspect.signature(row.likelihood).parameters

    def whole(mixture: Tensor, first_frame: int | Tensor, *factors: Tensor) -> Pass[tuple[Any, ...]]:
        model = NMF(factors[0], factors[1], nmf.iterations, nmf.fixed_w) if nmf is not None else noise_model
        given = {"mixture": mixture, "noise_model": model, "score": score, "times": times, "em_rounds": em_rounds}
        likelihood = row.likelihood(**{name: value for name, value in given.items() if name in wanted}, **options)
        states = yield from reverse_diffusion(
            score,
            likelihood,
            like=mixture,
            samples=samples,
            times=times,
            dt=1 / len(times) if dt is None else dt,
            draw=randomness or counter_based(seed, first_frame),
            sde=sde,
            corrector_snr=corrector_snr,
            corrected_sources=corrected_sources,
        )
        corrected = [s for s in likelihood.sources if corrector_snr > 0 and s in corrected_sources]
        per_step = len(likelihood.sources) + len(corrected) + (sampler == "paradiffuse_in")
        calls = per_step * len(times) * likelihood.rounds
        return (
            calls,
            states["speech"],
            likelihood.noise_estimate(states),
            *(model.variance if isinstance(model, NMF) else ()),
        )

    factors: tuple[Tensor, ...] = () if nmf is None else nmf.variance
    result: tuple[Any, ...]
    if replayed is not None and randomness is None and noise_model is nmf:
        settings = samples, em_rounds, seed, tuple(times), dt, corrector_snr, tuple(corrected_sources), sde
        model_settings = None if nmf is None else (nmf.iterations, nmf.fixed_w)
        frame = torch.full((), first_frame, device=mixture.device)  # read by the graph
        key = sampler, score, settings, model_settings, tuple(sorted(options.items()))
        (result,) = yield [WholePass(replayed, key, whole, (mixture, frame, *factors))]
    else:
        result = yield from whole(mixture, first_frame, *factors)
    calls, speech, noise = result[:3]
    if nmf is not None:
        nmf.W, nmf.H = result[3:]
    if not all(torch.isfinite(torch.view_as_real(state)).all() for state in (speech, noise) if state is not None):
        raise UdseError(
            f"sampler {sampler!r}: the reverse pass diverged with {len(times)} steps; give more steps or less guidance"
        )
    return Posterior(speech, noise, noise_model, calls)


@functools.wraps(posterior_pass, assigned=())  # its signature
def posterior_sample(mixture: Tensor, score: Score, sampler: str = "diffuseen", **arguments: Any) -> Posterior:
    """Draw speech from the posterior given the mixture: `posterior_pass`, which says what the arguments are, run."""
    return run(posterior_pass(mixture, score, sampler, **arguments))


def _check(mixture: Tensor, steps: int, samples: int, rank: int, em_rounds: int) -> None:
    if not isinstance(mixture, Tensor) or mixture.ndim != 2 or not mixture.is_complex() or mixture.numel() == 0:
        got = f"{tuple(mixture.shape)} {mixture.dtype}" if isinstance(mixture, Tensor) else type(mixture).__name__
        raise UdseError(f"mixture: expected a complex tensor (F, T), compressed and normalised, got {got}")
    if not torch.isfinite(torch.view_as_real(mixture)).all():
        raise UdseError("mixture: expected finite numbers, got NaN or infinity; clean the input first")
    for name, value in (("steps", steps), ("samples", samples), ("rank", rank), ("em_rounds", em_rounds)):
        if not isinstance(value, int) or value < 1:
            raise UdseError(f"{name}: expected an integer >= 1, got {value!r}")
