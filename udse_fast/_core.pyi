"""The C++ core. Arrays must be contiguous and of the dtype given; results go into arrays of the caller."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Complexes: TypeAlias = NDArray[np.complex64]
_Floats: TypeAlias = NDArray[np.float32]
_Noise: TypeAlias = _Complexes | tuple[int, int, int, int, int] | None
"""(B, F, T), or the key of a draw: seed, role, step, first frame, first sample."""
_NoiseVariance: TypeAlias = _Floats | tuple[_Floats, _Floats]
"""V (F, T), or W (F, R) and H (R, T)."""

def isa() -> str: ...
def set_isa(name: str) -> None: ...
def complex_normal(key: tuple[int, int, int, int, int], out: _Complexes, threads: int) -> None: ...
def compress(z: _Complexes, exponent: float, factor: float, out: _Complexes, threads: int) -> None: ...
def decompress(z: _Complexes, exponent: float, factor: float, out: _Complexes, threads: int) -> None: ...
def network_input(state: _Complexes, scale: _Floats, out: _Floats, threads: int) -> None: ...
def network_input_bfloat16(state: _Complexes, scale: _Floats, out: NDArray[np.uint16], threads: int) -> None: ...
def nmf_update(
    power: _Floats, W: _Floats, H: _Floats, iterations: int, floor: float, fixed_w: bool, threads: int
) -> None: ...
def online_nmf_update(
    power: _Floats,
    W: _Floats,
    H: _Floats,
    numerator: _Floats,
    denominator: _Floats,
    forgetting: float,
    iterations: int,
    floor: float,
    threads: int,
) -> None: ...
def corrector(
    state: _Complexes, score: _Complexes, coefficients: _Floats, noise: _Noise, out: _Complexes, threads: int
) -> None: ...
def predictor(
    state: _Complexes, score: _Complexes, coefficients: _Floats, noise: _Noise, out: _Complexes, threads: int
) -> None: ...
def marginal_guidance(
    state: _Complexes,
    score: _Complexes,
    mixture: _Complexes,
    noise_variance: _NoiseVariance,
    coefficients: _Floats,
    noise: _Noise,
    guidance: _Floats,
    apply: bool,
    power_of_state: bool,
    divide_tweedie: bool,
    out: _Complexes,
    power: _Floats,
    threads: int,
) -> None: ...
def product_of_gaussians(
    state: _Complexes,
    score: _Complexes,
    mixture: _Complexes,
    noise_variance: _NoiseVariance,
    coefficients: _Floats,
    noise: _Noise,
    forward_noise: _Noise,
    divide_tweedie: bool,
    out: _Complexes,
    power: _Floats,
    threads: int,
) -> None: ...
def noise_posterior_guidance(
    state: _Complexes,
    score: _Complexes,
    mixture: _Complexes,
    noise_variance: _NoiseVariance,
    coefficients: _Floats,
    noise: _Noise,
    guidance: _Floats,
    observation_variance: float,
    paper_posterior: bool,
    out: _Complexes,
    power: _Floats,
    noise_mean: _Complexes | None,
    threads: int,
) -> None: ...
def predictor_residual(
    state: _Complexes,
    score: _Complexes,
    mixture: _Complexes,
    coefficients: _Floats,
    noise: _Noise,
    residual_noise: _Noise,
    out: _Complexes,
    residual: _Complexes,
    threads: int,
) -> None: ...
def score_noise_guidance(
    state: _Complexes,
    noise_score: _Complexes,
    coefficients: _Floats,
    guidance: _Floats,
    out: _Complexes,
    threads: int,
) -> None: ...
def joint_guidance(
    speech: _Complexes,
    speech_score: _Complexes,
    noise: _Complexes,
    noise_score: _Complexes,
    mixture: _Complexes,
    coefficients: _Floats,
    speech_draw: _Noise,
    noise_draw: _Noise,
    guidance: _Floats,
    apply: bool,
    observation_variance: float,
    speech_out: _Complexes,
    noise_out: _Complexes,
    threads: int,
) -> None: ...
def unexplained_power(
    state: _Complexes,
    score: _Complexes,
    posterior_variance: _Floats,
    mixture: _Complexes,
    noise_variance: _NoiseVariance,
    coefficients: _Floats,
    noise_bias: float,
    power: _Floats,
    threads: int,
) -> None: ...
def ddrm_step(
    state: _Complexes,
    score: _Complexes,
    posterior_variance: _Floats,
    mixture: _Complexes,
    noise_variance: _NoiseVariance,
    coefficients: _Floats,
    following: _Floats | None,
    noise: _Noise,
    eta: float,
    out: _Complexes,
    threads: int,
) -> None: ...

class CausalNetwork:
    """A causal Compact network with its weights."""

    def __init__(self, weights: Mapping[str, _Floats], dilations: Sequence[int]) -> None: ...
    @property
    def bins(self) -> int: ...
    @property
    def memory_size(self) -> int:
        """Numbers of the memory of one signal at one noise level."""
    def step(
        self,
        noisy: _Complexes,
        noise_level: _Floats,
        label: NDArray[np.int64] | None,
        memory: _Floats,
        clean: _Complexes,
        variance: _Floats,
        threads: int,
    ) -> None:
        """The next K frames, (B, F, K) complex, at one noise level per sample; memory (B, memory_size) is updated."""
