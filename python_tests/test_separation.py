"""Separation by posterior sampling against recorded runs of an independent float64 implementation, and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import udse_fast
from udse_fast.errors import UdseError
from udse_fast.sampling.reconstruction import Compressed, Waveform

GOLDEN = np.load(Path(__file__).parent / "golden" / "dps.npz")
RUNS = ["euler_gradient", "heun_gradient", "euler_joint", "euler_residual"]
PREFIX = {"waveform": "wave", "compressed": "compressed"}


def golden(domain: str, name: str) -> Tensor:
    value = torch.from_numpy(GOLDEN[f"{PREFIX[domain]}_{name}"])
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def dct(length: int) -> Tensor:
    """Orthonormal DCT-II as a matrix."""
    k, n = torch.meshgrid(torch.arange(length).double(), torch.arange(length).double(), indexing="ij")
    rows = torch.cos(torch.pi * k * (n + 0.5) / length) * (2 / length) ** 0.5
    rows[0] /= 2**0.5
    return rows


def gaussian(variance: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Denoiser of a Gaussian prior, of waveforms in the cosine domain, of spectrograms by bins."""
    if variance.ndim == 2:
        return lambda u, tau: variance / (variance + tau**2) * u
    basis = dct(len(variance))
    return lambda u, tau: basis.T @ (variance / (variance + tau**2) * (basis @ u))


def denoisers(domain: str) -> dict[str, Callable[[Tensor, float], Tensor]]:
    w = float(golden(domain, "guidance"))
    free = gaussian(golden(domain, "unconditional_variance"))

    def guided(variance: Tensor) -> Callable[[Tensor, float], Tensor]:
        told = gaussian(variance)
        return lambda u, tau: (1 + w) * told(u, tau) - w * free(u, tau)

    speakers = {f"speaker_{k}": guided(v) for k, v in enumerate(golden(domain, "conditional_variance"), 1)}
    return speakers | {"noise": gaussian(golden(domain, "noise_variance"))}


def separated(domain: str, **options: Any) -> udse_fast.Separated:
    if domain == "waveform":
        names = {"n_fft": "n_fft", "hop_length": "hop"}
        options |= {option: int(golden(domain, name)) for option, name in names.items()}
        options["exponent"] = float(golden(domain, "exponent"))  # 2/3 in single precision, which the runs magnify
    given = {"tau": golden(domain, "tau"), "start": golden(domain, "draw_init")}
    return udse_fast.separate_sources(golden(domain, "mixture"), denoisers(domain), domain=domain, **(given | options))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("domain", PREFIX)
def test_recorded_runs(domain: str, run: str) -> None:
    solver, rule = run.split("_")
    result = separated(domain, solver=solver, rule=rule)
    assert relative(result.states, golden(domain, f"{run}_out_state")) < 1e-6
    assert relative(result.denoised, golden(domain, f"{run}_out_denoised")) < 1e-6
    assert result.names == ("speaker_1", "speaker_2", "noise")
    assert torch.equal(result["noise"], result.denoised[2])
    if rule == "gradient":
        assert relative(torch.tensor(result.losses).double(), golden(domain, f"{run}_step_loss")) < 1e-6


@pytest.mark.parametrize("domain", PREFIX)
def test_the_loss_and_its_gradient(domain: str) -> None:
    mixture, level = golden(domain, "mixture"), float(golden(domain, "once_tau"))
    space = (
        Compressed(mixture) if domain == "compressed" else Waveform(mixture, 64, 16, float(golden(domain, "exponent")))
    )
    states = golden(domain, "once_state").requires_grad_()
    loss = space.loss([d(u, level) for d, u in zip(denoisers(domain).values(), states, strict=True)])
    (gradient,) = torch.autograd.grad(loss, states)
    assert loss.item() == pytest.approx(float(golden(domain, "once_loss")), rel=1e-6)
    assert relative(gradient, golden(domain, "once_gradient")) < 1e-6


def test_single_precision_stays_single() -> None:
    priors = {"a": lambda u, tau: u / (1 + tau**2), "b": lambda u, tau: u / (2 + tau**2)}
    result = udse_fast.separate_sources(torch.randn(4, 5, dtype=torch.complex64), priors, tau=[1.0, 0.5, 0.0])
    assert result.denoised.dtype == torch.complex64
    assert result.denoised.shape == (2, 4, 5)


def test_gradients_flow_where_the_caller_has_none() -> None:
    with torch.inference_mode():
        quiet = separated("compressed")
    assert torch.equal(quiet.denoised, separated("compressed").denoised)
    assert not quiet.denoised.requires_grad


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"solver": "rk4"}, "solver: expected euler or heun, got 'rk4'"),
        ({"rule": "mine"}, "rule: expected gradient or joint or residual"),
        ({"tau": [1.0, 0.5]}, "the last of which is 0"),
        ({"tau": [0.5, 1.0, 0.0]}, "decreasing noise levels"),
        ({"tau": 3}, "tau: expected a list"),
        ({"start": torch.zeros(3, 2)}, "start: expected finite complex numbers"),
        ({"zeta": -1.0}, "zeta: expected a number"),
    ],
)
def test_what_does_not_fit_is_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UdseError, match=line):
        separated("compressed", **options)


@pytest.mark.parametrize(
    ("denoiser", "line"),
    [
        (lambda u, tau: u.detach(), "denoiser 'a': expected a function that torch can differentiate"),
        (lambda u, tau: u[:1], "denoiser 'a': expected a tensor like its state"),
        (lambda u, tau: u * float("nan"), "separation diverged at the noise level 1"),
    ],
)
def test_a_denoiser_that_does_not_fit_is_one_line(denoiser: Any, line: str) -> None:
    with pytest.raises(UdseError, match=line):
        udse_fast.separate_sources(torch.ones(4, 5, dtype=torch.complex128), {"a": denoiser}, tau=[1.0, 0.0])
