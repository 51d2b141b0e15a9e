"""The fused updates: the equations against closed forms, the C++ core against the float64 reference."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from udse_fast.backends import cuda_library
from udse_fast.errors import UdseError
from udse_fast.kernels import posterior_step as lg
from udse_fast.kernels import predictor_corrector as pc
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey
from udse_fast.kernels.posterior_step import reference as lg_reference
from udse_fast.kernels.predictor_corrector import reference as pc_reference
from udse_fast.kernels.step import UPDATES as DECLARED
from udse_fast.kernels.step import Step

TOLERANCE = 3e-6  # of the largest value: float32 rounding of a dozen operations
SHAPES = [
    (1, 1, 1, 1),
    (2, 1, 65, 1),
    (1, 3, 63, 2),
    (3, 5, 64, 3),
    (2, 8, 127, 4),
    (1, 31, 33, 7),
    (4, 2, 129, 32),
]
ONE_TIME = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30, corrector_snr=0.5)


def per_frame(frames: int) -> Coefficients:
    """A different time in every frame."""
    ramp = torch.linspace(0.5, 1.5, frames, dtype=torch.float64)
    return Coefficients(*(value * ramp for value in ONE_TIME.values()))


class Inputs:
    """Random arguments of every update, in complex64 or, of the same values, complex128."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        B, F, T, R = shape
        generator = torch.Generator().manual_seed(F * T)
        real = torch.float32 if dtype == torch.complex64 else torch.float64

        def cplx(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.complex64).to(dtype)

        self.s, self.S, self.n, self.N, self.z, self.z2 = (cplx(B, F, T) for _ in range(6))
        self.x = cplx(F, T)
        self.factors = (
            torch.rand(F, R, generator=generator).to(real),
            torch.rand(R, T, generator=generator).to(real),
        )
        self.V = self.factors[0] @ self.factors[1]
        self.C = torch.rand(B, F, T, generator=generator).to(real)

    def step(self, c: Coefficients, z: Any = None, z2: Any = None, variance: Any = None) -> Step:
        """All that an update may read: the next step's level is 3 times this one's, below and above V by turns."""
        following = replace(c, delta=0.7, sigma=3 * c.sigma)
        V = self.factors if variance is None else variance
        return Step(self.s, self.S, c, z, self.x, V, self.C, following, self.n, self.N, z2)


UPDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "corrector": ("corrector", {}),
    "predictor": ("predictor", {}),
    "udiffse": ("marginal_guidance", {"guidance": 1.5, "power_of_state": True}),
    "udiffse_unguided": ("marginal_guidance", {"apply": False, "power_of_state": True}),
    "udiffse_plus": ("marginal_guidance", {"guidance": 1.5}),
    "udiffse_plus_paper": ("marginal_guidance", {"guidance": 1.5, "divide_tweedie": True}),
    "given_variance": ("marginal_guidance", {}),
    "depse_il": ("product_of_gaussians", {}),
    "depse_tl": ("product_of_gaussians", {"divide_tweedie": True}),
    "diffuseen": ("noise_posterior_guidance", {"want_noise": True}),
    "diffuseen_paper": ("noise_posterior_guidance", {"guidance": 1.0, "paper_posterior": True, "want_noise": True}),
    "predictor_residual": ("predictor_residual", {}),
    "score_noise_guidance": ("score_noise_guidance", {"guidance": 0.7}),
    "paradiffuse_en": ("joint_guidance", {"guidance": "sigma"}),
    "paradiffuse_en_last": ("joint_guidance", {"guidance": 1.0, "apply": False}),
    "unexplained_power": ("unexplained_power", {"noise_bias": 2.5}),
    "unexplained_power_given_variance": ("unexplained_power", {}),
    "ddrm": ("ddrm_step", {}),
    "ddrm_given_variance": ("ddrm_step", {"eta": 0.3}),
    "posterior_mean": ("posterior_mean", {}),
}
"""Case -> update and its options."""


def call(name: str, a: Inputs, c: Coefficients, z: Any, z2: Any, reference: bool = False) -> tuple[Any, ...]:
    """A case in the C++ core or by the reference."""
    update, options = UPDATES[name]
    if options.get("guidance") == "sigma":
        options = {**options, "guidance": 5.75 * c.sigma}
    step = a.step(c, z, None if name == "depse_il" else z2, a.V if "given_variance" in name else None)
    results = getattr(module(update, reference), update)(step, **options)
    return (results,) if isinstance(results, torch.Tensor) else results


def module(name: str, reference: bool) -> Any:
    if name in ("corrector", "predictor"):
        return pc_reference if reference else pc
    return lg_reference if reference else lg


def assert_close(result: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert result is not None
    assert expected is not None
    bound = TOLERANCE * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(result.to(expected.dtype), expected, rtol=0, atol=bound)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("times", ["one_time", "per_frame"])
@pytest.mark.parametrize("noise", ["given", "drawn", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_core_is_the_float64_reference(isa: str, shape: tuple[int, int, int, int], noise: str, times: str) -> None:
    coefficients = ONE_TIME if times == "one_time" else per_frame(shape[2])
    single_precision, double = Inputs(shape, torch.complex64), Inputs(shape, torch.complex128)
    keys = NoiseKey(11, "predictor_speech", 3, 1000), NoiseKey(11, "predictor_noise", 3, 1000)
    for name in UPDATES:
        draws = [{"given": (a.z, a.z2), "drawn": keys, "none": (None, None)}[noise] for a in (single_precision, double)]
        results = call(name, single_precision, coefficients, *draws[0])
        expected = call(name, double, coefficients, *draws[1], reference=True)
        assert len(results) == len(expected)
        for result, value in zip(results, expected, strict=True):
            assert_close(result, value)


@pytest.mark.parametrize("name", UPDATES)
def test_a_frame_does_not_depend_on_the_cut(isa: str, name: str) -> None:
    """What a stream computes in blocks is what the whole signal gives, bit for bit."""
    whole = Inputs((2, 5, 150, 3), torch.complex64)
    expected = call(name, whole, ONE_TIME, NoiseKey(1, "dither"), NoiseKey(2, "dither"))
    for first, last in ((0, 37), (37, 110), (110, 150)):
        part = Inputs((2, 5, 150, 3), torch.complex64)
        for field in ("s", "S", "n", "N", "z", "z2", "x", "V", "C"):
            setattr(part, field, getattr(part, field)[..., first:last].contiguous())
        part.factors = (part.factors[0], part.factors[1][:, first:last].contiguous())
        keys = (NoiseKey(seed, "dither", first_frame=first) for seed in (1, 2))
        results = call(name, part, ONE_TIME, *keys)
        for result, value in zip(results, expected, strict=True):
            assert result is not None
            assert value is not None
            assert torch.equal(result, value[..., first:last])


@pytest.mark.parametrize("name", UPDATES)
def test_thread_count_changes_nothing(isa: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = Inputs((2, 65, 70, 4), torch.complex64)
    arguments = (name, a, ONE_TIME, NoiseKey(1, "dither"), NoiseKey(2, "dither"))
    serial = call(*arguments)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for one, other in zip(serial, call(*arguments), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_every_update_has_a_case() -> None:
    assert {update for update, _ in UPDATES.values()} == set(DECLARED)


@pytest.mark.parametrize("name", DECLARED)
def test_a_field_that_is_not_given_is_named(isa: str, name: str) -> None:
    """A kernel would read what is not there."""
    step = Inputs((1, 2, 3, 1), torch.complex64).step(ONE_TIME)
    for field in DECLARED[name].reads:
        if not field.endswith("noise") and field not in ("state", "score", "coefficients"):
            with pytest.raises(UdseError, match=f"{name} expected a step with {field}, got none"):
                getattr(module(name, False), name)(step._replace(**{field: None}))


def test_corrector_of_a_constant() -> None:
    """r sigma = 0.2, hence eps = 0.04: 1 + 0.04 * 2 + sqrt(0.08) j."""
    state = torch.ones(1, 1, 1, dtype=torch.complex128)
    c = replace(ONE_TIME, sigma=0.4)
    assert complex(pc.corrector(Step(state, 2 * state, c, 1j * state))) == pytest.approx(1.08 + math.sqrt(0.08) * 1j)


def test_predictor_of_a_constant() -> None:
    """gamma dt = 0.15, g^2 dt = 0.4, g sqrt(dt) = 2 sqrt(0.1)."""
    state = torch.ones(1, 1, 1, dtype=torch.complex128)
    c = replace(ONE_TIME, g=2.0, dt=0.1)
    assert complex(pc.predictor(Step(state, 3 * state, c, 1j * state))) == pytest.approx(2.35 + 2 * math.sqrt(0.1) * 1j)


def test_tweedie_mean_of_a_gaussian_prior_is_its_wiener_estimate() -> None:
    """s = delta s0 + sigma z with s0 of variance v: E[s0 | s] = delta v / (delta^2 v + sigma^2) s."""
    s = Inputs((1, 3, 5, 1), torch.complex128).s
    delta, sigma, v = 0.6, 0.25, 0.8
    mean = pc_reference.tweedie_mean(s, -s / (delta**2 * v + sigma**2), ONE_TIME)
    torch.testing.assert_close(mean, delta * v / (delta**2 * v + sigma**2) * s)


def test_product_of_gaussians_is_their_posterior() -> None:
    """Moments over many draws against Bayes' rule with precisions: 1/q at m and 1/R at delta x."""
    shape = (1, 1, 1)
    one = torch.ones(shape, dtype=torch.complex128)
    c, V = ONE_TIME, torch.full((1, 1), 0.3, dtype=torch.float64)
    m, q = 1 + 1.5 / 30 + 2 * 0.25 / 30, 0.25 / 30
    R = 0.36 * ((0.25 / 0.6) ** 2 + 0.3)
    variance = 1 / (1 / q + 1 / R)
    expected = variance * (m / q + 0.6 * 4 / R)
    step = Step(one, 2 * one, c, None, 4 * one[0], V)
    state, _ = lg_reference.product_of_gaussians(step)
    assert complex(state) == pytest.approx(expected)
    state, _ = lg_reference.product_of_gaussians(step._replace(noise=one))
    assert complex(state) == pytest.approx(expected + math.sqrt(variance))


def test_marginal_guidance_is_the_gradient_of_the_log_likelihood() -> None:
    """The step is lambda g^2 dt times the gradient of log N(x; s/delta, a^2 + V), which autograd finds."""
    a, c = Inputs((1, 3, 4, 2), torch.complex128), ONE_TIME
    after_predictor = pc_reference.predictor(Step(a.s, a.S, c)).requires_grad_()
    total = (c.sigma / c.delta) ** 2 + a.V
    log_likelihood = -((a.x - after_predictor / c.delta).abs().square() / total).sum()
    (gradient,) = torch.autograd.grad(log_likelihood, after_predictor)
    state, power = lg_reference.marginal_guidance(Step(a.s, a.S, c, None, a.x, a.V), guidance=1.5, power_of_state=True)
    # torch's gradient of a real function is 2 d/d conj(s), the score of a complex Gaussian d/d conj(s)
    expected = after_predictor.detach() + 1.5 * c.g**2 * c.dt * gradient / 2
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(power, (a.x - state[0]).abs().square())


def test_noise_posterior_without_uncertainty_gives_the_residual() -> None:
    """V far above q: the noise is all that speech does not explain, mu = x - s0 and P = |mu|^2 + q."""
    a, c = Inputs((2, 3, 4, 1), torch.complex128), ONE_TIME
    V = torch.full((3, 4), 1e12, dtype=torch.float64)
    _, power, mu = lg_reference.noise_posterior_guidance(Step(a.s, a.S, c, None, a.x, V), want_noise=True)
    s0 = pc_reference.tweedie_mean(pc_reference.predictor(Step(a.s, a.S, c)), a.S, c)
    assert mu is not None
    torch.testing.assert_close(mu, a.x - s0)
    q = (c.sigma / c.delta) ** 2 + 5e-4
    torch.testing.assert_close(power, (a.x - s0).abs().square().mean(0) + q)


def test_joint_guidance_rests_where_the_parts_sum_to_the_mixture() -> None:
    """Without scores, s0 = s/delta: where s0 + n0 = x, guidance does nothing."""
    a, c = Inputs((1, 3, 4, 1), torch.complex128), replace(ONE_TIME, gamma=0.0)
    zero = torch.zeros_like(a.s)
    speech, noise = c.delta * a.x / 4, 3 * c.delta * a.x / 4
    step = Step(speech[None], zero, c, mixture=a.x, other_state=noise[None], other_score=zero)
    s, n = lg_reference.joint_guidance(step, guidance=5.0)
    torch.testing.assert_close(s[0], speech)
    torch.testing.assert_close(n[0], noise)


def ddrm_by_the_paper(
    estimate: complex, observed: complex, variance: float, level: float, eta: float, draw: complex
) -> complex:
    """Kawar et al. 2022, eq. 7 and 8 for one number of H = 1 (its singular value is 1), eta_b = 1.

    The paper's Gaussians have mean and variance; `level` is sigma_t and `variance` is sigma_y^2.
    """
    sigma_y = math.sqrt(variance)
    if level >= sigma_y:
        eta_b = 1.0
        mean = (1 - eta_b) * estimate + eta_b * observed
        spread = math.sqrt(level**2 - sigma_y**2 * eta_b**2)
    else:
        mean = estimate + math.sqrt(1 - eta**2) * level * (observed - estimate) / sigma_y
        spread = eta * level
    return mean + spread * draw


@pytest.mark.parametrize("per_bin_times", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_ddrm_step_is_the_papers_bin_by_bin(isa: str, eta: float, per_bin_times: bool) -> None:
    """Scaled as there: the state over delta is the clean signal and noise of level sigma/delta."""
    rng = np.random.default_rng(5)
    B, F, T = 2, 6, 70

    def cplx(*sizes: int) -> NDArray[np.complex128]:
        return (rng.standard_normal(sizes) + 1j * rng.standard_normal(sizes)).astype(np.complex64).astype(complex)

    s, S, z, x = cplx(B, F, T), cplx(B, F, T), cplx(B, F, T), cplx(F, T)
    V = (4 * rng.random((F, T)) ** 4).astype(np.float32).astype(float)
    ramp = np.linspace(0.5, 1.5, T) if per_bin_times else np.ones(T)
    delta, sigma, next_delta, next_sigma = 0.6 * ramp, 0.9 * ramp[::-1], 0.8 * ramp, 0.6 * ramp[::-1]
    expected, branches = np.empty((B, F, T), complex), set()
    for b, f, t in np.ndindex(B, F, T):
        estimate = s[b, f, t] / delta[t] + sigma[t] ** 2 / delta[t] * S[b, f, t]
        level = next_sigma[t] / next_delta[t]
        branches.add(bool(level >= math.sqrt(V[f, t])))
        expected[b, f, t] = next_delta[t] * ddrm_by_the_paper(estimate, x[f, t], V[f, t], level, eta, z[b, f, t])
    assert branches == {False, True}

    def number(values: NDArray[np.float64]) -> float | torch.Tensor:
        return torch.from_numpy(values.copy()) if per_bin_times else float(values[0])

    c = replace(ONE_TIME, delta=number(delta), sigma=number(sigma))
    following = replace(ONE_TIME, delta=number(next_delta), sigma=number(next_sigma))
    double = [torch.from_numpy(value) for value in (s, S, x, z, V)]

    def step(values: list[torch.Tensor]) -> Step:
        state, score, mixture, noise, variance = values
        return Step(state, score, c, noise, mixture, variance, following=following)

    result = lg.ddrm_step(step([*(value.to(torch.complex64) for value in double[:4]), double[4].float()]), eta=eta)
    assert_close(result, torch.from_numpy(expected))
    torch.testing.assert_close(lg_reference.ddrm_step(step(double), eta=eta), torch.from_numpy(expected))


def test_the_last_ddrm_step_is_the_posterior_mean(isa: str) -> None:
    """N(s0, C) and N(x; s, V) have precisions 1/C and 1/V."""
    a, c = Inputs((2, 3, 5, 1), torch.complex64), ONE_TIME
    estimate = (a.s.to(torch.complex128) + 0.0625 * a.S) / 0.6
    precision = 1 / a.C.double() + 1 / a.V.double()
    expected = (estimate / a.C.double() + a.x / a.V.double()) / precision
    assert_close(lg.posterior_mean(a.step(c, variance=a.V)), expected)


def test_the_power_of_the_m_step_is_that_of_the_posterior(isa: str) -> None:
    """N(s0, C) N(x; s, V) / N(u; s, a^2) where V < a^2, bin by bin: precisions and their products with means add up."""
    a, sigma, delta, kappa = Inputs((2, 3, 50, 1), torch.complex64), 0.5, 0.6, 1.25
    c, a2 = replace(ONE_TIME, sigma=sigma, delta=delta), (sigma / delta) ** 2
    V = (2 * a2 * torch.rand(3, 50, generator=torch.Generator().manual_seed(1))).clamp_min(1e-3)
    expected, branches = torch.zeros(3, 50, dtype=torch.float64), set()
    for b, f, t in np.ndindex(2, 3, 50):
        s, S, x = (complex(value) for value in (a.s[b, f, t], a.S[b, f, t], a.x[f, t]))
        u, s0, C, v = s / delta, (s + sigma**2 * S) / delta, float(a.C[b, f, t]), float(V[f, t])
        precision, weighted = 1 / C, s0 / C
        branches.add(v < a2)
        if v < a2:
            precision, weighted = precision + 1 / v - 1 / a2, weighted + x / v - u / a2
        expected[f, t] += kappa * (abs(x - weighted / precision) ** 2 + 1 / precision) / 2
    assert branches == {False, True}
    assert_close(lg.unexplained_power(a.step(c, variance=V), noise_bias=kappa), expected)


def test_nothing_is_read_but_what_is_declared(isa: str) -> None:
    """The prior's posterior variance, for one, is there on every step and read on the last."""
    for name, declared in DECLARED.items():
        a = Inputs((2, 3, 70, 2), torch.complex64)
        expected = getattr(module(name, False), name)(a.step(ONE_TIME, a.z, a.z2))
        for field, tensor in {"mixture": a.x, "posterior_variance": a.C, "other_state": a.n, "noise": a.z}.items():
            if field not in declared.reads:
                tensor.fill_(torch.nan)
        result = getattr(module(name, False), name)(a.step(ONE_TIME, a.z, a.z2))
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_a_share_of_fresh_noise_above_all_is_refused(isa: str) -> None:
    a = Inputs((1, 3, 5, 1), torch.complex64)
    with pytest.raises(UdseError, match=r"eta must be in \[0, 1\]; got 1\.5"):
        lg.ddrm_step(a.step(ONE_TIME, a.z), eta=1.5)


def test_names_and_order_are_those_of_the_core() -> None:
    """Coefficients go to the core as six numbers, fields and options by their names in its header."""
    header = (Path(__file__).parent.parent / "csrc" / "udse_core.hpp").read_text()

    def members(structure: str) -> list[str]:
        found = re.search(rf"struct {structure} {{\n(.*?)\n}};", header, re.DOTALL)
        assert found is not None
        code = re.sub(r"//.*|= {.*?}|= [^,;]+|\*", "", found[1])
        return [name for line in code.split(";") if line.split() for name in re.findall(r"(\w+)(?=\s*(?:,|$|{))", line)]

    assert [field.name for field in fields(Coefficients)] == members("Coefficients")
    of_step = members("Step")
    assert of_step[0] == "shape"
    assert set(Step._fields) <= set(of_step)
    for declared in DECLARED.values():
        assert {*declared.reads, *declared.gives, *declared.options} - {"want_noise"} <= set(of_step)
    assert [name for name, *_ in cuda_library.Step._fields_] == of_step
