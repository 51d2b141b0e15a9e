"""Audio as users hand it over, numpy or torch, float or 16-bit integers: checked, and given back alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast.checks import Range
from udse_fast.errors import UdseError

SAMPLE_RATES = Range(8000, 1_000_000)
INT16_SCALE = 32768.0
_DTYPES = ("float32", "float64", "int16")


def check_sample_rate(sample_rate: Any) -> int:
    """A whole number of Hz, from 8000 to 1000000."""
    is_number = isinstance(sample_rate, (int, float, np.integer, np.floating)) and not isinstance(sample_rate, bool)
    if not is_number or sample_rate not in SAMPLE_RATES or sample_rate % 1 != 0:
        raise UdseError(f"sample_rate: expected a whole number of Hz {SAMPLE_RATES}, got {sample_rate!r}")
    return int(sample_rate)


@dataclass(frozen=True)
class AudioFormat:
    """How a user's audio came, to give the result back in the same form."""

    is_torch: bool
    dtype: str
    one_dimensional: bool
    device: str = "cpu"

    @classmethod
    def of(cls, audio: Any, name: str = "audio", channels: int | None = None) -> AudioFormat:
        """Form of an array or tensor (L,) or (channels, L) of float32, float64 or int16; `channels` where known."""
        is_torch = isinstance(audio, torch.Tensor)
        if not is_torch and not isinstance(audio, np.ndarray):
            raise UdseError(f"{name}: expected a numpy array or torch tensor, got {type(audio).__name__}")
        dtype = str(audio.dtype).removeprefix("torch.")
        if is_torch and (audio.layout != torch.strided or audio.is_meta):
            raise UdseError(f"{name}: expected a dense tensor with data, got {audio.layout} on {audio.device}")
        if dtype not in _DTYPES:
            raise UdseError(f"{name}: expected {', '.join(_DTYPES)}, got {dtype}; convert it first")
        if audio.ndim not in (1, 2):
            raise UdseError(f"{name}: expected the shape (L,) or (channels, L), got {tuple(audio.shape)}")
        if channels is None and audio.ndim == 2 and audio.shape[0] > max(64, audio.shape[1]):
            raise UdseError(
                f"{name}: expected (channels, L), got {tuple(audio.shape)}, "
                "which looks like (L, channels); transpose it"
            )
        return cls(is_torch, dtype, audio.ndim == 1, str(audio.device) if is_torch else "cpu")

    def __str__(self) -> str:
        shape, kind = "(L,)" if self.one_dimensional else "(channels, L)", "torch" if self.is_torch else "numpy"
        return f"{shape} {self.dtype} {kind}{f' on {self.device}' if self.device != 'cpu' else ''}"

    def to_float(self, audio: Any) -> NDArray[np.float32]:
        """(channels, L) float32, full scale 1."""
        array = audio.detach().cpu().numpy() if self.is_torch else audio
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, and told as such
            samples = np.atleast_2d(array).astype(np.float32)
        return samples / np.float32(INT16_SCALE) if self.dtype == "int16" else samples

    def from_float(self, samples: NDArray[np.float32]) -> Any:
        """The inverse of `to_float`; 16-bit integers are rounded and clipped at full scale."""
        result: Any = samples[0] if self.one_dimensional else samples
        if self.dtype == "int16":
            result = np.clip(np.rint(result * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1)
        result = np.ascontiguousarray(result.astype(self.dtype))
        return torch.from_numpy(result).to(self.device) if self.is_torch else result


def check_finite(samples: NDArray[np.float32], name: str = "audio") -> None:
    """No NaN, no infinity."""
    if not np.isfinite(samples).all():
        channel, position = np.argwhere(~np.isfinite(samples))[0]
        raise UdseError(
            f"{name}: expected finite samples, got {samples[channel, position]} at sample {position}; "
            "repair it first (numpy.nan_to_num)"
        )
