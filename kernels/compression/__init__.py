"""Amplitude compression of a spectrogram, and back."""

from udse_fast.backends.dispatch import dispatched
from udse_fast.kernels.compression import reference

__all__ = ["compress", "decompress"]

compress = dispatched(reference.compress)
decompress = dispatched(reference.decompress)
