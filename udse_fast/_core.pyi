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

_Coefficients: TypeAlias = Sequence[float] | _Floats
"""gamma, delta, sigma, g, dt, corrector_snr; or (6, T)."""

def isa() -> str: ...
def set_isa(name: str) -> None: ...
def complex_normal(key: tuple[int, int, int, int, int], out: _Complexes, threads: int) -> None: ...
def compress(z: _Complexes, exponent: float, factor: float, out: _Complexes, threads: int) -> None: ...
def decompress(z: _Complexes, exponent: float, factor: float, out: _Complexes, threads: int) -> None: ...
def nmf_update(power: _Floats, W: _Floats, H: _Floats, iterations: int, floor: float, threads: int) -> None: ...
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
def update(
    name: str,
    state: _Complexes,
    score: _Complexes,
    coefficients: _Coefficients,
    noise: _Noise = None,
    mixture: _Complexes | None = None,
    variance: _NoiseVariance | None = None,
    posterior_variance: _Floats | None = None,
    following: _Coefficients | None = None,
    other_state: _Complexes | None = None,
    other_score: _Complexes | None = None,
    other_noise: _Noise = None,
    guidance: float | _Floats = 1.0,
    observation_variance: float = 0.0,
    noise_bias: float = 1.0,
    eta: float = 0.0,
    apply: bool = True,
    power_of_state: bool = False,
    divide_tweedie: bool = False,
    paper_posterior: bool = False,
    next: _Complexes | None = None,
    other_next: _Complexes | None = None,
    power: _Floats | None = None,
    threads: int = 1,
) -> None:
    """Run an update of `udse_core.hpp` by its name."""

class CompactNetwork:
    """A Compact network with its weights, or a posterior network."""

    def __init__(self, weights: Mapping[str, _Floats], dilations: Sequence[int], centred: bool = False) -> None: ...
    @property
    def bins(self) -> int: ...
    @property
    def tells_noise(self) -> bool:
        """Whether it is a posterior network."""
    @property
    def memory_size(self) -> int:
        """Numbers of the memory of one signal in one of the calls of a block."""
    def step(
        self,
        noisy: _Complexes,
        noise_level: _Floats,
        label: NDArray[np.int64] | None,
        memory: _Floats | None,
        clean: _Complexes,
        variance: _Floats,
        threads: int,
        before: _Floats | None = None,
    ) -> None:
        """The next K frames, (B, F, K) complex, at one noise level per sample; memory (B, memory_size) is updated, or
        written where what it is made from is given, before. Of a centred network all frames, and no memory."""
    def say(
        self,
        mixture: _Complexes,
        noise_variance: _Floats,
        memory: _Floats | None,
        clean: _Complexes,
        variance: _Floats,
        believed: _Floats,
        heard: _Complexes,
        threads: int,
        before: _Floats | None = None,
    ) -> None:
        """The next K frames, (B, F, K) complex, in noise of this variance, of a posterior network; memory as in
        step."""

class StreamPrior:
    """The causal networks of native streams."""

    def __init__(
        self,
        network: CompactNetwork,
        posterior: CompactNetwork | None,
        config: Mapping[str, float],
        sqrt_hann: bool,
        fingerprint: int,
    ) -> None: ...

class NativeStream:
    """Samples in, speech and noise out. One thread at a time."""

    def __init__(
        self,
        prior: StreamPrior,
        numbers: Mapping[str, float],
        words: Mapping[str, str],
        seed: int,
        sample_rate: int,
        channels: int,
    ) -> None: ...
    def fits(self, other: NativeStream) -> bool:
        """Whether the two can be computed side by side."""
    def flush(self) -> tuple[_Floats, _Floats]: ...
    def reset(self) -> None: ...
    def state(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...
    @property
    def latency(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @property
    def network_calls(self) -> int: ...
    @property
    def recovered_blocks(self) -> int: ...

def process_many(streams: Sequence[NativeStream], samples: Sequence[_Floats]) -> list[tuple[_Floats, _Floats]]:
    """(n, channels) in, speech and noise (m, channels) out, of every stream; they compute side by side."""
