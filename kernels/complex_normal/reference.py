"""Counter-based circular complex normal noise: Philox 4x32-10 and the Box-Muller transform.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
A draw is a pure function of what it is for (seed, role, step, frame, bin, sample), so it is the same for any
chunking over frames, any split over samples and any backend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from udse_fast.errors import UdseError

ROLES: Final[dict[str, int]] = {
    "init_speech": 0,
    "init_noise": 1,
    "corrector_speech": 2,
    "corrector_noise": 3,
    "predictor_speech": 4,
    "predictor_noise": 5,
    "forward_mixture": 6,
    "dither": 7,
}
"""Fixed identity of each use of noise; part of the counter, never to be renumbered."""

MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)
MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class NoiseKey:
    """Names one draw of noise. Its numbers depend on nothing else.

    Args:
        seed: 64-bit seed.
        role: what the draw is for, a name of `ROLES`.
        step: index of the reverse step, counted on over EM rounds.
        first_frame: absolute index of the first frame of the block; or where it is read when the draw is made, a
            0-d int64 tensor on the device of the draw, for CUDA graphs that are replayed block after block.
        first_sample: index of the first posterior sample of the batch.
    """

    seed: int
    role: str
    step: int = 0
    first_frame: int | torch.Tensor = 0
    first_sample: int = 0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UdseError(f"role of the noise must be one of {', '.join(ROLES)}; got {self.role!r}")
        if not 0 <= self.seed < 2**64:
            raise UdseError(f"seed must be an integer in [0, 2^64); got {self.seed}")
        known = isinstance(self.first_frame, int)  # to look at a tensor would wait for its device
        if not (0 <= self.step < 2**32 and (not known or self.first_frame >= 0) and 0 <= self.first_sample < 2**16):
            raise UdseError(
                f"step, first_frame and first_sample must be >= 0, step below 2^32, first_sample below 2^16; "
                f"got {self.step}, {self.first_frame}, {self.first_sample}"
            )


Noise: TypeAlias = torch.Tensor | NoiseKey | None
"""The noise of an update: complex normal numbers (B, F, T), the key of a draw, or None for zero."""


Shape: TypeAlias = tuple[int, int, int]
"""(B, F, T)."""


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Philox 4x32-10.

    Args:
        counter: four int64 tensors that broadcast, 32-bit words, lowest first.
        key: two 32-bit words, lowest first.

    Returns:
        four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap; their bits are still those of the 64-bit unsigned product
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0, c1, c2, c3


def complex_normal(
    key: NoiseKey,
    shape: Shape,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Circular complex normal numbers with E|z|^2 = 1.

    Counter words: frame, (bin >> 1) | (sample << 16), step, role. Words 0 and 1 of the result serve
    the even bin, 2 and 3 the odd one: u_i = ((x_i >> 8) + 1/2) / 2^24, z = sqrt(-ln u_0) exp(2 pi j u_1).

    Args:
        key: which draw.
        shape: (B, F, T).
        dtype: complex64 or complex128.
        device: where the result lies.

    Returns:
        (B, F, T) of dtype.
    """
    samples, bins, frames = shape
    sample = torch.arange(key.first_sample, key.first_sample + samples, device=device).view(-1, 1, 1)
    pair = torch.arange((bins + 1) // 2, device=device).view(1, -1, 1)
    frame = (torch.arange(frames, device=device) + key.first_frame).view(1, 1, -1)
    step, role = (torch.full((), word, device=device) for word in (key.step, ROLES[key.role]))
    words = philox((frame & MASK, pair | sample << 16, step, role), (key.seed & MASK, key.seed >> 32))
    uniform = torch.stack([((word >> 8).double() + 0.5) / 2**24 for word in words])
    modulus, angle = (-uniform[0::2].log()).sqrt(), 2 * math.pi * uniform[1::2]
    even_odd = torch.polar(modulus, angle).permute(1, 2, 0, 3)  # (B, pairs, 2, T)
    return even_odd.reshape(samples, -1, frames)[:, :bins].to(dtype).contiguous()


def as_tensor(noise: Noise, like: torch.Tensor) -> torch.Tensor:
    """The noise an update adds to `like` (B, F, T): given numbers, a draw, or (None) zero."""
    if noise is None:
        return torch.zeros_like(like)
    if isinstance(noise, NoiseKey):
        return complex_normal(noise, (like.shape[0], like.shape[1], like.shape[2]), like.dtype, like.device)
    return noise
