"""Amplitude compression of a spectrogram, and back: c(z) = factor |z|^exponent exp(j arg z)."""

from __future__ import annotations

import torch

TINY = 1e-37  # modulus below which z counts as zero: no division by zero, and float32 keeps it


def compress(z: torch.Tensor, exponent: float = 0.5, factor: float = 0.15) -> torch.Tensor:
    """c(z) = factor |z|^exponent exp(j arg z), 0 at 0.

    Args:
        z: complex, any shape.
        exponent: in (0, 1].
        factor: positive.

    Returns:
        complex, shape and dtype of z.
    """
    return factor * z * z.abs().clamp_min(TINY) ** (exponent - 1)


def decompress(z: torch.Tensor, exponent: float = 0.5, factor: float = 0.15) -> torch.Tensor:
    """The inverse of `compress`, with its arguments: |z / factor|^(1/exponent) exp(j arg z)."""
    z = z / factor
    return z * z.abs() ** (1 / exponent - 1)
