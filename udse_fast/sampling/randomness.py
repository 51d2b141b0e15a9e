"""The noise source that is handed to the reverse pass. The loop itself never calls a random generator.

A draw is named by what it is for and by its step, and is either an explicit tensor (recorded draws in tests) or a
`NoiseKey`, from which every backend makes the same numbers inside its own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from udse_fast.kernels.complex_normal import NoiseKey, complex_normal

Draw = Callable[[str, int], Tensor | NoiseKey]
"""draw(name, index) -> circular complex normal (B, F, T), E|z|^2 = 1, or the key it is made from."""


def drawn(value: Tensor | NoiseKey, shape: Sequence[int], like: Tensor) -> Tensor:
    """The numbers of a draw, in the precision and on the device of `like`."""
    if isinstance(value, NoiseKey):
        samples, bins, frames = shape
        return complex_normal(value, (samples, bins, frames), dtype=like.dtype, device=like.device)
    return value.to(like)


def of_first_sample(draw: Draw) -> Draw:
    """The numbers that the first sample gets, (1, F, T)."""

    def first(name: str, index: int) -> Tensor | NoiseKey:
        value = draw(name, index)
        return value if isinstance(value, NoiseKey) else value[:1]  # of a key as many are made as are wanted

    return first


def counter_based(seed: int, first_frame: int | Tensor = 0, first_sample: int = 0) -> Draw:
    """Philox 4x32-10 draws that depend on seed, name, index, frame, bin and sample only, not on how the signal is cut.

    `first_frame` is the absolute number of the first frame of the spectrogram, or where it is found (see `NoiseKey`),
    `first_sample` that of the first posterior sample.
    """

    def draw(name: str, index: int) -> NoiseKey:
        return NoiseKey(seed=seed, role=name, step=index, first_frame=first_frame, first_sample=first_sample)

    return draw
