"""Audio as users hand it over, numpy or torch, float or integers: checked, and given back alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast.checks import Range
from udse_fast.errors import UdseError

SAMPLE_RATES = Range(8000, 1_000_000)
INT16_SCALE = 32768
"""The int16 number of amplitude 1."""
_INTEGERS = {"int16": (0, INT16_SCALE), "int32": (0, 2**31), "uint8": (128, 128)}
"""dtype -> (silence, full scale)."""
_OF_TORCH = {
    **{"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16},
    **{"int16": torch.int16, "int32": torch.int32, "uint8": torch.uint8},
}
"""What is taken, of torch and, by the same names, of numpy."""


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
    swapped: bool = False
    """Whether the bytes of every sample are in the other order than this machine's."""

    @classmethod
    def of(cls, audio: Any, name: str = "audio", channels: int | None = None) -> AudioFormat:
        """Form of an array or tensor (L,) or (channels, L); `channels` where known.

        float32, float64, float16 and bfloat16 have full scale 1; int16, int32 and uint8 that of their kind. Numpy
        arrays may have either byte order.
        """
        is_torch = isinstance(audio, torch.Tensor)
        if not is_torch and not isinstance(audio, np.ndarray):
            raise UdseError(f"{name}: expected a numpy array or torch tensor, got {type(audio).__name__}")
        if is_torch and (audio.layout != torch.strided or audio.is_meta):
            raise UdseError(f"{name}: expected a dense tensor with data, got {audio.layout} on {audio.device}")
        dtype = str(audio.dtype).removeprefix("torch.") if is_torch else audio.dtype.name
        if dtype not in _OF_TORCH:
            raise UdseError(f"{name}: expected {', '.join(_OF_TORCH)}, got {dtype}; convert it first")
        if audio.ndim not in (1, 2):
            raise UdseError(f"{name}: expected the shape (L,) or (channels, L), got {tuple(audio.shape)}")
        if channels is None and audio.ndim == 2 and audio.shape[0] > max(64, audio.shape[1]):
            raise UdseError(
                f"{name}: expected (channels, L), got {tuple(audio.shape)}, "
                "which looks like (L, channels); transpose it"
            )
        swapped = not is_torch and not audio.dtype.isnative
        return cls(is_torch, dtype, audio.ndim == 1, str(audio.device) if is_torch else "cpu", swapped)

    def __str__(self) -> str:
        shape, kind = "(L,)" if self.one_dimensional else "(channels, L)", "torch" if self.is_torch else "numpy"
        order = " of the other byte order" if self.swapped else ""
        return f"{shape} {self.dtype} {kind}{order}{f' on {self.device}' if self.device != 'cpu' else ''}"

    def to_float(self, audio: Any) -> NDArray[np.float32]:
        """(channels, L) float32, full scale 1."""
        if self.is_torch:  # numpy has no bfloat16
            audio = audio.detach().cpu()
            audio = (audio.float() if self.dtype == "bfloat16" else audio).numpy()
        audio = np.atleast_2d(audio)
        if self.dtype in _INTEGERS:
            silence, full_scale = _INTEGERS[self.dtype]
            return np.asarray((audio.astype(np.float32) - np.float32(silence)) / np.float32(full_scale))
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, and told as such
            return np.asarray(audio.astype(np.float32))

    def from_float(self, samples: NDArray[np.float32]) -> Any:
        """The inverse of `to_float`; integers are rounded and clipped at full scale, short floats rounded."""
        result: Any = samples[0] if self.one_dimensional else samples
        if self.dtype in _INTEGERS:
            silence, full_scale = _INTEGERS[self.dtype]
            wide = result.astype(np.float64) * full_scale
            result = np.clip(np.rint(wide), -full_scale, full_scale - 1) + silence
        if self.is_torch:
            return torch.from_numpy(np.ascontiguousarray(result)).to(self.device, _OF_TORCH[self.dtype])
        dtype = np.dtype(self.dtype)
        with np.errstate(over="ignore"):  # beyond what float16 holds: infinite there too
            return np.ascontiguousarray(result.astype(dtype.newbyteorder() if self.swapped else dtype))


def check_finite(samples: NDArray[np.float32], name: str = "audio") -> None:
    """No NaN, no infinity."""
    if not np.isfinite(samples).all():
        channel, position = np.argwhere(~np.isfinite(samples))[0]
        raise UdseError(
            f"{name}: expected finite samples, got {samples[channel, position]} at sample {position}; "
            "repair it first (numpy.nan_to_num)"
        )


def checked_audio(audio: Any, sample_rate: Any, name: str = "audio") -> tuple[AudioFormat, NDArray[np.float32]]:
    """Form and samples (channels, L) of a whole recording.

    Raises:
        UdseError: another shape, dtype or rate, no samples, NaN or infinity.
    """
    audio_format = AudioFormat.of(audio, name)
    samples = audio_format.to_float(audio)
    if samples.size == 0:
        raise UdseError(f"{name}: expected at least one sample, got the shape {tuple(audio.shape)}")
    check_finite(samples, name)
    check_sample_rate(sample_rate)
    return audio_format, samples
