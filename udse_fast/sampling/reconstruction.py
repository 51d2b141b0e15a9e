"""How well the sum of sources explains a mixture: C = sum |phi(x) - phi(sum_k D_k)|^2, by the domain of the states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from udse_fast.checks import described
from udse_fast.errors import UdseError

TINY = 1e-8


class Domain(ABC):
    """What sources are states of, and what their mixture is."""

    def __init__(self, observed: Tensor) -> None:
        self._observed = observed

    def loss(self, sources: Sequence[Tensor]) -> Tensor:
        """C of estimates shaped as the mixture, 0-d real; torch can differentiate it."""
        residual = self._observed - self._spectrum(sources)
        return torch.view_as_real(residual).square().sum()

    @abstractmethod
    def _spectrum(self, sources: Sequence[Tensor]) -> Tensor:
        """phi of the sum of the sources, (F, T) complex."""


class Compressed(Domain):
    """Spectrograms |z|^(1/2) exp(j arg z): sources add after decompression, and the mixture is observed as it is."""

    def __init__(self, mixture: Tensor) -> None:
        is_spectrogram = isinstance(mixture, Tensor) and mixture.ndim == 2 and mixture.is_complex()
        if not is_spectrogram or mixture.numel() == 0 or not torch.isfinite(mixture.abs()).all():
            raise UdseError(f"mixture: expected finite complex numbers (F, T), got {described(mixture)}")
        super().__init__(mixture.detach().resolve_conj())

    def _spectrum(self, sources: Sequence[Tensor]) -> Tensor:
        total = torch.stack([source.abs() * source for source in sources]).sum(0)
        return _compressed(total, 1 / 2)


class Waveform(Domain):
    """Samples; phi is the one-sided STFT (periodic Hann, centred, reflected edges) with its modulus to a power."""

    def __init__(self, mixture: Tensor, n_fft: int, hop_length: int, exponent: float) -> None:
        is_signal = isinstance(mixture, Tensor) and mixture.ndim == 1 and mixture.is_floating_point()
        if not is_signal or not torch.isfinite(mixture).all():
            raise UdseError(f"mixture: expected finite real numbers (L,), got {described(mixture)}")
        if len(mixture) <= n_fft // 2:
            raise UdseError(f"mixture: expected more than n_fft / 2 = {n_fft // 2} samples, got {len(mixture)}")
        self._n_fft, self._hop_length, self._exponent = n_fft, hop_length, exponent
        self._window = torch.hann_window(n_fft, dtype=mixture.dtype, device=mixture.device)
        super().__init__(self._spectrum([mixture.detach()]))

    def _spectrum(self, sources: Sequence[Tensor]) -> Tensor:
        total = torch.stack(list(sources)).sum(0)
        spectrum = torch.stft(total, self._n_fft, self._hop_length, window=self._window, return_complex=True)
        return _compressed(spectrum, self._exponent)


def _compressed(z: Tensor, exponent: float) -> Tensor:
    """(|z| + 1e-8)^p exp(j arg z); silent bins have no gradient instead of an infinite one."""
    return (z.abs() + TINY) ** exponent * z.sgn()
