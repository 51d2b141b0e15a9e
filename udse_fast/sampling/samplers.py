"""The samplers by name, with their published settings, and `posterior_sample`: one of them on one spectrogram."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udse_fast.backends.cuda_graphs import Replayed, WholePass
from udse_fast.checks import Range, complex_tensor, described, flag, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.kernels.complex_normal import NoiseKey
from udse_fast.sampling.diffusion import Likelihood, Pass, Score, asked_score, reverse_diffusion
from udse_fast.sampling.likelihoods.ddrm import DDRM
from udse_fast.sampling.likelihoods.depse import DEPSEIL, DEPSETL
from udse_fast.sampling.likelihoods.diffuseen import DiffUSEEN
from udse_fast.sampling.likelihoods.paradiffuse import ParaDiffUSEEN, ParaDiffUSEIN
from udse_fast.sampling.likelihoods.udiffse import UDiffSE, UDiffSEPlus
from udse_fast.sampling.likelihoods.unconditional import Unconditional
from udse_fast.sampling.noise_models import NMF, NoiseModel, start_nmf
from udse_fast.sampling.passes import run
from udse_fast.sampling.randomness import Draw, counter_based
from udse_fast.sampling.sde import OUVE, Time, time_grid

CORRECTOR_SNR = Range(0, 10)
SEEDS = Range(0, 2**64 - 1)
OPTIONS: dict[str, Range | None] = {
    "guidance": Range(0, 1000),
    "observation_variance": Range(0, 100, excluded=True),
    "eta": Range(0, 1),
    "noise_bias": Range(0, 1000),
    "variance_scale": Range(0, 1000),
    "divide_tweedie": None,
    "paper_posterior": None,
    "perturb_residual": None,
}
"""Option of a sampler -> range of the number, None: true or false."""


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

    def checked(self, options: dict[str, Any], spelling: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Options of this sampler as Python's numbers.

        Args:
            spelling: what `Enhancer` calls an option, where that differs.

        Raises:
            UdseError: another kind, or out of range.
        """
        checked: dict[str, Any] = {}
        for name, value in options.items():
            bounds, shown = OPTIONS[name], (spelling or {}).get(name, name)
            checked[name] = flag(shown, value) if bounds is None else real_number(shown, value, bounds)
        return checked


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
    if not isinstance(name, str) or name not in SAMPLERS:
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
        The network calls that are due, see `udse_fast.sampling.passes`.

    Returns:
        Posterior.

    Raises:
        UdseError: unknown sampler or option, wrong shape or dtype, mixture that is not finite, diverged pass.
    """
    row = find_sampler(sampler)
    mixture = _checked_mixture(mixture)
    for name, value in (("score", score), ("randomness", randomness)):
        if not callable(value) and (name == "score" or value is not None):
            raise UdseError(f"{name}: expected a function, got {type(value).__name__}")
    steps, samples, rank, em_rounds = (
        whole_number(name, value, Range(1))
        for name, value in (("steps", steps), ("samples", samples), ("rank", rank), ("em_rounds", em_rounds))
    )
    seed = whole_number("seed", seed, SEEDS)
    corrector_snr = real_number("corrector_snr", corrector_snr, CORRECTOR_SNR)
    unknown = set(options) - set(row.options)
    if unknown:
        known = ", ".join(row.options) or "none"
        raise UdseError(f"sampler {sampler!r}: unknown option {', '.join(sorted(unknown))}; it has: {known}")
    options = row.checked(options)
    sde = OUVE() if sde is None else sde
    if not isinstance(sde, OUVE):
        raise UdseError(f"sde: expected an OUVE, got {type(sde).__name__}")
    if noise_model is not None and not (hasattr(noise_model, "variance") and hasattr(noise_model, "fit")):
        raise UdseError(f"noise_model: expected one with `variance` and `fit`, got {type(noise_model).__name__}")
    times = time_grid(steps) if times is None else _checked_times(times, mixture)
    if row.noise == "nmf" and noise_model is None:
        W, H = start_nmf(mixture, rank, seed) if initial_nmf is None else _checked_factors(initial_nmf, mixture)
        noise_model = NMF(W.to(mixture.real), H.to(mixture.real))
    nmf = noise_model if isinstance(noise_model, NMF) else None
    wanted = inspect.signature(row.likelihood).parameters
    drawn = None if randomness is None else _checked_draw(randomness, (samples, *mixture.shape), mixture)
    ask = functools.partial(asked_score, score)

    def whole(mixture: Tensor, first_frame: int | Tensor, *factors: Tensor) -> Pass[tuple[Any, ...]]:
        model = NMF(factors[0], factors[1], nmf.iterations) if nmf is not None else noise_model
        given = {"mixture": mixture, "noise_model": model, "score": ask, "times": times, "em_rounds": em_rounds}
        likelihood = row.likelihood(**{name: value for name, value in given.items() if name in wanted}, **options)
        states = yield from reverse_diffusion(
            score,
            likelihood,
            like=mixture,
            samples=samples,
            times=times,
            dt=1 / len(times) if dt is None else dt,
            draw=drawn or counter_based(seed, first_frame),
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
        model_settings = None if nmf is None else nmf.iterations
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
    """Draw speech from the posterior given the mixture: `posterior_pass`, which says what the arguments are, run.

    No gradients are kept.
    """
    with torch.no_grad():
        return run(posterior_pass(mixture, score, sampler, **arguments))


posterior_sample.__signature__ = inspect.signature(posterior_pass).replace(  # type: ignore[attr-defined]
    return_annotation="Posterior"
)


def _checked_mixture(mixture: Any) -> Tensor:
    if not isinstance(mixture, Tensor) or mixture.ndim != 2 or not mixture.is_complex() or mixture.numel() == 0:
        raise UdseError(
            f"mixture: expected a complex tensor (F, T), compressed and normalised, got {described(mixture)}"
        )
    mixture = mixture.resolve_conj()
    if not torch.isfinite(torch.view_as_real(mixture)).all():
        raise UdseError("mixture: expected finite numbers, got NaN or infinity; clean the input first")
    return mixture


def _checked_times(times: Any, mixture: Tensor) -> list[Time]:
    """Diffusion times, numbers or one per frame (T,), in the precision of the mixture."""
    if not isinstance(times, (Sequence, Tensor, np.ndarray)) or isinstance(times, str) or len(times) == 0:
        raise UdseError(f"times: expected a list of times, one for each step, got {times!r}")
    checked: list[Time] = []
    for step, t in enumerate(times):
        if isinstance(t, Tensor) and t.ndim:
            T = mixture.shape[1]
            if t.shape != (T,) or not t.is_floating_point() or not bool(((t > 0) & (t <= 1)).all()):
                raise UdseError(f"times[{step}]: expected a number or ({T},) numbers in (0, 1], got {described(t)}")
            checked.append(t.to(mixture.real))
        else:
            value = t.item() if isinstance(t, Tensor) else t
            checked.append(real_number(f"times[{step}]", value, Range(0, 1, excluded=True)))
    return checked


def _checked_factors(factors: Any, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """W (F, R) and H (R, T) of a variance, which is finite and not negative."""
    given = tuple(factors) if isinstance(factors, (tuple, list)) else (factors,)
    tensors = [f for f in given if isinstance(f, Tensor) and f.ndim == 2 and f.is_floating_point()]
    if len(given) == len(tensors) == 2:
        W, H = tensors
        fits = W.shape[1] == H.shape[0] > 0 and (len(W), H.shape[1]) == mixture.shape
        if fits and all(bool(torch.isfinite(f).all() and (f >= 0).all()) for f in tensors):
            return W, H
    raise UdseError(
        f"initial_nmf: expected two real tensors W ({mixture.shape[0]}, R) and H (R, {mixture.shape[1]}), finite and "
        f">= 0, got {' and '.join(described(f) for f in given)}"
    )


def _checked_draw(draw: Draw, shape: tuple[int, ...], like: Tensor) -> Draw:
    """`draw` in the precision of the states, and one line where what it gives does not fit them."""

    def checked(name: str, index: int) -> Tensor | NoiseKey:
        value = draw(name, index)
        if isinstance(value, NoiseKey):
            return value
        return complex_tensor(f"randomness({name}, {index})", value, shape).to(like)

    return checked
