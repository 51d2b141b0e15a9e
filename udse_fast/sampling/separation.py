"""`separate_sources`: posterior sampling of all sources of a mixture at once, each with a prior of its own (DAVSS-NM).

Diffusion is variance-exploding with the noise level tau as its time (Karras et al. 2022), the likelihood is that of
diffusion posterior sampling (Chung et al. 2023) on power-compressed spectra. Sources know of each other by the
reconstruction loss alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udse_fast.checks import Range, described, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.sampling.reconstruction import Compressed, Domain, Waveform

Denoiser = Callable[[Tensor, float], Tensor]
"""D(u, tau) -> E[source | u], of the shape of u, which torch can differentiate by u."""

SOLVERS = ("euler", "heun")
RULES = ("gradient", "joint", "residual")
TINY = 1e-8


@dataclass(frozen=True)
class Separated:
    """Sources of a mixture, in the order of the denoisers and in the domain and precision of the mixture."""

    names: tuple[str, ...]
    states: Tensor
    """u after the last step, (K, ...). It still has the last likelihood step in it: `denoised` is the result."""
    denoised: Tensor
    """D(u, tau) of the last step, (K, ...)."""
    losses: tuple[float, ...]
    """Reconstruction loss C at the start of each step."""

    def __getitem__(self, name: str) -> Tensor:
        """The estimate of a source by its name."""
        return self.denoised[self.names.index(name)]


def separate_sources(
    mixture: Tensor,
    denoisers: Mapping[str, Denoiser],
    *,
    tau: Sequence[float] | Tensor | np.ndarray,
    zeta: float = 0.5,
    solver: str = "euler",
    rule: str = "gradient",
    domain: str = "compressed",
    n_fft: int = 510,
    hop_length: int = 128,
    exponent: float = 2 / 3,
    start: Tensor | None = None,
    seed: int = 0,
) -> Separated:
    """Draw all sources of a mixture from their posterior, by coupled reverse ODEs.

    With h = tau_{i+1} - tau_i, C = sum |phi(x) - phi(sum_k D_k)|^2 and G_k = dC / du_k, each step is

        d_k = (u_k - D_k) / tau_i + zeta sqrt(n) G_k / ||G_k||,   u_k <- u_k + h d_k

    Args:
        mixture: (L,) real for "waveform", (F, T) complex for "compressed"; float64 stays float64.
        denoisers: by name of the source, in order; D(u, tau) of a state shaped as the mixture.
        tau: N + 1 decreasing noise levels, the last is 0.
        zeta: weight of the likelihood; 0 leaves it out.
        solver: "euler", or "heun" (two evaluations a step).
        rule: how G_k is scaled: by its own norm ("gradient"), by the norm of all ("joint"), or
            u_k <- u_k - zeta / sqrt(C) G_k after the step ("residual").
        domain: of the states. "compressed": |z|^(1/2) exp(j arg z), in which sources add after decompression;
            "waveform": samples, whose STFT the loss compresses.
        n_fft, hop_length, exponent: of that STFT and its compression.
        start: (K, ...) standard normal, complex ones with E|z|^2 = 1; default: drawn from `seed`.

    Returns:
        Separated.

    Raises:
        UdseError: arguments that do not fit each other; denoisers that torch cannot differentiate; a diverged pass.
    """
    levels = _checked_levels(tau)
    zeta = real_number("zeta", zeta, Range(0, 1e6))
    for name, value, known in (("solver", solver, SOLVERS), ("rule", rule, RULES)):
        if value not in known:
            raise UdseError(f"{name}: expected {' or '.join(known)}, got {value!r}")
    if not isinstance(denoisers, Mapping) or not denoisers or not all(callable(d) for d in denoisers.values()):
        raise UdseError(f"denoisers: expected functions by the name of their source, got {denoisers!r}")
    if domain == "compressed":
        space: Domain = Compressed(mixture)
    elif domain == "waveform":
        space = Waveform(
            mixture,
            whole_number("n_fft", n_fft, Range(2)),
            whole_number("hop_length", hop_length, Range(1)),
            real_number("exponent", exponent, Range(0, 1, excluded=True)),
        )
    else:
        raise UdseError(f"domain: expected compressed or waveform, got {domain!r}")
    z = _checked_start(start, len(denoisers), mixture, seed)
    with torch.inference_mode(False):
        problem = _Separation(dict(denoisers), space, zeta, rule)
        return problem.solve(levels[0] * z, levels, solver == "heun")


@dataclass(frozen=True)
class _Evaluation:
    """Of all sources at one noise level."""

    denoised: Tensor
    loss: Tensor
    gradients: Tensor
    slope: Tensor


@dataclass(frozen=True)
class _Separation:
    denoisers: Mapping[str, Denoiser]
    domain: Domain
    zeta: float
    rule: str

    def solve(self, states: Tensor, levels: Sequence[float], heun: bool) -> Separated:
        """From states (K, ...) at the first level to those at the last one."""
        losses: list[float] = []
        for level, following in itertools.pairwise(levels):
            now = self.evaluate(states, level)
            losses.append(now.loss.item())
            slope, h = now.slope, following - level
            if heun and following > 0:
                slope = (slope + self.evaluate(states + h * slope, following).slope) / 2
            states = states + h * slope
            if self.rule == "residual":
                states = states - self.zeta / (now.loss.sqrt() + TINY) * now.gradients
            if not torch.isfinite(now.loss) or not torch.isfinite(states.abs()).all():
                raise UdseError(f"separation diverged at the noise level {level:g}; give more levels or a lower zeta")
        return Separated(tuple(self.denoisers), states, now.denoised, tuple(losses))

    def evaluate(self, states: Tensor, level: float) -> _Evaluation:
        """Denoised sources, C, its gradients by the states, and the slope of the ODEs."""
        with torch.enable_grad():
            leaves = [state.detach().clone().requires_grad_() for state in states]
            estimates = [
                _checked_estimate(name, denoise(leaf, level), leaf)
                for (name, denoise), leaf in zip(self.denoisers.items(), leaves, strict=True)
            ]
            loss = self.domain.loss(estimates)
        gradients = torch.stack(torch.autograd.grad(loss, leaves))
        denoised = torch.stack(estimates).detach()
        slope = (states - denoised) / level
        if self.rule != "residual":
            slope = slope + self._likelihood_slope(gradients)
        return _Evaluation(denoised, loss.detach(), gradients, slope)

    def _likelihood_slope(self, gradients: Tensor) -> Tensor:
        """Of mean square zeta^2 per element: of each source ("gradient"), or over all of them ("joint")."""
        axes = tuple(range(1 if self.rule == "gradient" else 0, gradients.ndim))
        elements = gradients[0].numel() if self.rule == "gradient" else gradients.numel()
        norm = gradients.abs().square().sum(axes, keepdim=True).sqrt()
        return self.zeta * elements**0.5 * gradients / (norm + TINY)


def _checked_levels(tau: Any) -> list[float]:
    try:
        levels = [float(level) for level in tau]
    except (TypeError, ValueError):
        raise UdseError(f"tau: expected a list of decreasing noise levels, got {described(tau)}") from None
    falls = all(a > b for a, b in itertools.pairwise(levels))
    if len(levels) < 2 or levels[-1] != 0 or not falls or not levels[0] < float("inf"):
        raise UdseError("tau: expected at least two decreasing noise levels, the last of which is 0; see the EDM grid")
    return levels


def _checked_start(start: Any, sources: int, mixture: Tensor, seed: int) -> Tensor:
    shape = sources, *mixture.shape
    if start is None:
        generator = torch.Generator().manual_seed(whole_number("seed", seed, Range(0, 2**63 - 1)))
        return torch.randn(shape, generator=generator, dtype=mixture.dtype).to(mixture.device)
    fits = isinstance(start, Tensor) and start.shape == shape and start.is_complex() == mixture.is_complex()
    if not fits or not torch.isfinite(start.abs()).all():
        kind = "complex" if mixture.is_complex() else "real"
        raise UdseError(f"start: expected finite {kind} numbers {shape}, one state a source, got {described(start)}")
    drawn: Tensor = start.to(mixture)
    return drawn


def _checked_estimate(name: str, estimate: Any, state: Tensor) -> Tensor:
    """D(u, tau) in the precision of the state."""
    fits = isinstance(estimate, Tensor) and estimate.shape == state.shape
    if not fits or estimate.is_complex() != state.is_complex():
        raise UdseError(f"denoiser {name!r}: expected a tensor like its state {described(state)}, got "
                        f"{described(estimate)}")  # fmt: skip
    if not estimate.requires_grad:
        raise UdseError(f"denoiser {name!r}: expected a function that torch can differentiate by the state, got one "
                        "that it cannot")  # fmt: skip
    same: Tensor = estimate.to(state)
    return same
