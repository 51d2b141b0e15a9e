"""The read-out: from posterior samples to one estimate in the compressed domain's inverse.

Samples are combined after the inverse compression (the mean of compressed samples is smaller than the sample mean of
what they stand for).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.samplers import Posterior
from udse_fast.spectral import Spectral

READOUTS: Final = ("auto", "mean", "mean_compressed", "wiener", "blend")


def _ratio(speech: Tensor, noise: Tensor) -> Tensor:
    return speech / (speech + noise).clamp_min(torch.finfo(speech.dtype).tiny)


def read_out(
    posterior: Posterior, mixture: Tensor, level: Tensor, spectral: Spectral, how: str, exponent: float = 1.0
) -> Tensor:
    """Speech spectrogram, (F, T) complex, at the level of the input.

    Args:
        posterior: samples in the normalised, compressed domain.
        mixture: x (F, T), in the same domain.
        level: NF, which undoes the normalisation.
        spectral: undoes the compression.
        how: "mean" averages the samples; "mean_compressed" does it before the inverse compression (the published
            UDiffSE and UDiffSE+); "wiener" takes samples and noise variance as the variances of a Wiener filter on the
            mixture, `mean_b |s|^2 / (|s|^2 + V)`, or, where the noise was sampled too, the published filter of
            ParaDiffUSE; "blend" averages that and the mean of the samples: in noise the samples are cleaner, in speech
            the filter is nearer to the recording; "auto" is the published choice: "wiener" for sampled noise, else
            "mean".
        exponent: of the gain on the mixture (parametric Wiener filter): below 1 it takes less away.
    """
    if how not in READOUTS:
        raise UdseError(f"readout: expected one of {', '.join(READOUTS)}, got {how!r}")
    speech = posterior.speech
    sampled_noise = posterior.noise is not None and posterior.noise_model is None
    if how == "auto":
        how = "wiener" if sampled_noise else "mean"
    if how == "mean_compressed":
        return spectral.decompress(speech.mean(0) * level)
    if how in ("wiener", "blend") and posterior.noise is not None and sampled_noise:
        gain = _ratio(speech.abs().square(), posterior.noise.abs().square()).mean(0)
        return spectral.decompress(torch.polar(gain.sqrt() * mixture.abs(), speech.mean(0).angle()) * level)
    if how in ("wiener", "blend") and posterior.noise_model is not None:
        variance = posterior.noise_model.variance
        V = variance[0] @ variance[1] if isinstance(variance, tuple) else variance
        gain = _ratio(speech.abs().square(), V).mean(0) ** exponent
        filtered = gain * spectral.decompress(mixture * level)
        return filtered if how == "wiener" else (filtered + spectral.decompress(speech * level).mean(0)) / 2
    return spectral.decompress(speech * level).mean(0)
