"""Counter-based circular complex normal noise."""

from udse_fast.backends.dispatch import dispatched
from udse_fast.kernels.complex_normal import reference
from udse_fast.kernels.complex_normal.reference import ROLES, Noise, NoiseKey

__all__ = ["ROLES", "Noise", "NoiseKey", "complex_normal"]

complex_normal = dispatched(reference.complex_normal)
