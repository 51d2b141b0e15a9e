"""From audio to the compressed, normalised spectrogram in which everything happens, and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.kernels.compression import compress, decompress

WINDOWS: Final = ("hann", "sqrt_hann")
PEAK_PADDINGS: Final = ("zeros", "reflection")


@lru_cache(maxsize=16)
def _window(name: str, n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    hann = torch.hann_window(n_fft, periodic=True, device=device, dtype=dtype)
    if name not in WINDOWS:
        raise UdseError(f"stft window: expected {' or '.join(map(repr, WINDOWS))}, got {name!r}")
    return hann.sqrt() if name == "sqrt_hann" else hann


@dataclass(frozen=True)
class Spectral:
    """Centred STFT with amplitude compression `c(z) = factor |z|^exponent exp(i arg z)`. Part of every checkpoint.

    The defaults are those of the published systems: 16 kHz, periodic Hann of 510 samples, hop 128, F = 256 bins.
    """

    sample_rate: int = 16000
    n_fft: int = 510
    hop_length: int = 128
    window: str = "hann"
    exponent: float = 0.5
    factor: float = 0.15

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def config(self) -> dict[str, object]:
        return asdict(self)

    def frames(self, length: int) -> int:
        """Frames of a signal of `length` samples."""
        return length // self.hop_length + 1

    def stft(self, audio: Tensor, center: bool = True) -> Tensor:
        """(..., L) float -> (..., F, T) complex, with zeros before and after; not `center`ed: whole windows only."""
        return self._stft(audio, center, "constant")

    def _stft(self, audio: Tensor, center: bool, edges: str) -> Tensor:
        window = _window(self.window, self.n_fft, audio.device, audio.dtype)
        return torch.stft(
            audio,
            self.n_fft,
            self.hop_length,
            window=window,
            center=center,
            pad_mode=edges,
            return_complex=True,
        )

    def istft(self, spectrogram: Tensor, length: int) -> Tensor:
        """(..., F, T) complex -> (..., length) float, the least-squares inverse."""
        window = _window(self.window, self.n_fft, spectrogram.device, spectrogram.real.dtype)
        return torch.istft(spectrogram, self.n_fft, self.hop_length, window=window, center=True, length=length)

    def overlap_add(self, spectrogram: Tensor) -> Tensor:
        """(F, T) complex, not centred -> ((T - 1) hop + n_fft,) float, the sum of the windowed frames."""
        window = _window(self.window, self.n_fft, spectrogram.device, spectrogram.real.dtype)
        return self._added(torch.fft.irfft(spectrogram.T, self.n_fft) * window)

    def squared_windows(self, frames: int) -> Tensor:
        """((frames - 1) hop + n_fft,) float32, what `overlap_add` of the signal's own STFT weighs its samples with."""
        window = _window(self.window, self.n_fft, torch.device("cpu"), torch.float32)
        return self._added(window.square().expand(frames, self.n_fft))

    def weighted_gain(self, gain: Tensor) -> Tensor:
        """(T,) one number per frame -> ((T - 1) hop + n_fft,) float, `overlap_add` of frames that are that number times
        the window: divided by `squared_windows`, it goes smoothly from frame to frame."""
        window = _window(self.window, self.n_fft, gain.device, gain.dtype)
        return self._added(gain[:, None] * window.square())

    def _added(self, frames: Tensor) -> Tensor:
        out = frames.new_zeros((len(frames) - 1) * self.hop_length + self.n_fft)
        for number, frame in enumerate(frames):
            out[number * self.hop_length : number * self.hop_length + self.n_fft] += frame
        return out

    def compress(self, spectrogram: Tensor) -> Tensor:
        """`factor |z|^exponent exp(i arg z)`, same shape."""
        # torch.stft is not contiguous, and the compiled updates take nothing else
        return compress(spectrogram.contiguous(), self.exponent, self.factor)

    def decompress(self, compressed: Tensor) -> Tensor:
        """Inverse of `compress`."""
        return decompress(compressed, self.exponent, self.factor)

    def analyse(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(L,) float -> mixture x (F, T) complex with largest modulus 1, and that level NF (0-d; 0 for silence)."""
        compressed = self.compress(self.stft(audio))
        level = compressed.abs().amax()
        return compressed / torch.where(level > 0, level, torch.ones_like(level)), level

    def synthesise(self, normalised: Tensor, level: Tensor, length: int) -> Tensor:
        """Inverse of `analyse`: (..., F, T), NF -> (..., length) float at the level of the input."""
        return self.istft(self.decompress(normalised * level), length)


@dataclass(frozen=True)
class PeakSpectral(Spectral):
    """The same of waveforms whose largest sample is 1, with reflected edges: that of networks trained on pairs.

    As the public SGMSE+ makes it: frames are added at the end up to a multiple, and take part in all that follows.
    """

    frame_multiple: int = 1
    padding: str = "zeros"
    """What the added frames are: "zeros", or "reflection" of those before (of the last one no copy)."""

    def stft(self, audio: Tensor, center: bool = True) -> Tensor:
        """(..., L) float -> (..., F, T) complex; what is shorter than half a window has zeros before and after."""
        return self._stft(audio, center, "reflect" if audio.shape[-1] > self.n_fft // 2 else "constant")

    def analyse(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(L,) float -> y (F, T) complex of the waveform divided by its largest sample, and c(that sample) / factor."""
        peak = audio.abs().amax()
        compressed = self.compress(self.stft(audio / torch.where(peak > 0, peak, torch.ones_like(peak))))
        return self.padded(compressed), peak**self.exponent

    def padded(self, compressed: Tensor) -> Tensor:
        """(F, T) complex with frames added, which are zeros where there are too few to be reflected."""
        missing, frames = -compressed.shape[-1] % self.frame_multiple, compressed.shape[-1]
        if self.padding == "reflection" and missing < frames:
            mirrored = compressed[..., frames - 1 - missing : frames - 1].flip(-1)
        else:
            mirrored = compressed.new_zeros(*compressed.shape[:-1], missing)
        return torch.cat([compressed, mirrored], dim=-1)
