"""`ReadOut`: from posterior samples to one estimate in the compressed domain's inverse.

Samples are combined after the inverse compression (the mean of compressed samples is smaller than the sample mean of
what they stand for).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.errors import UdseError
from udse_fast.sampling.posterior import Posterior
from udse_fast.sampling.restraint import Restraint

READOUTS: Final = ("auto", "mean", "mean_compressed", "wiener", "blend")
FILTERS: Final = ("wiener", "blend")
"""Those that need an estimate of the noise."""


def _ratio(speech: Tensor, noise: Tensor) -> Tensor:
    return speech / (speech + noise).clamp_min(torch.finfo(speech.dtype).tiny)


class ReadOut:
    """From posterior samples to one speech spectrogram, in the inverse of the compressed domain.

    Args:
        spectral: undoes the compression.
        how: "mean" averages the samples; "mean_compressed" does it before the inverse compression (the published
            UDiffSE and UDiffSE+); "wiener" takes samples and noise variance as the variances of a Wiener filter on the
            mixture, `mean_b |s|^2 / (|s|^2 + V)`, or, where the noise was sampled too, the published filter of
            ParaDiffUSE; "blend" takes that filter in bands where there is speech enough, in the others rather the
            mean of the samples: there they are cleaner, elsewhere the filter is nearer to the recording; "auto" is
            the published choice: "wiener" for sampled noise, else "mean".
        exponent: of the gain on the mixture (parametric Wiener filter): below 1 it takes less away.
        blend_ratio: r_0, power of the speech relative to the noise in a band at which filter and samples weigh the
            same in "blend"; with r the ratio that was found, the filter weighs r / (r + r_0).
        forgetting: of the powers that r is made of, from call to call; 0: every call is a signal of its own.
        restraint: less is taken away where it is speech, see `Restraint`.
    """

    def __init__(
        self,
        spectral: Spectral,
        how: str = "auto",
        exponent: float = 1.0,
        blend_ratio: float = 1.0,
        forgetting: float = 0.0,
        restraint: bool = False,
    ) -> None:
        if how not in READOUTS:
            raise UdseError(f"readout: expected one of {', '.join(READOUTS)}, got {how!r}")
        self.spectral, self.how, self.exponent = spectral, how, exponent
        self.blend_ratio, self.forgetting = blend_ratio, forgetting
        self._powers = torch.zeros(2, spectral.bins, 1, dtype=torch.float32)
        """Sums over time of the powers of speech and noise, by band."""
        self._restraint = Restraint(spectral, goes_on=forgetting > 0) if restraint else None
        self._recent = torch.zeros(0, dtype=torch.float32) if self._restraint is None else self._restraint.nothing

    def __call__(self, posterior: Posterior, mixture: Tensor, level: Tensor) -> Tensor:
        """Speech spectrogram, (F, T) complex, at the level of the input.

        Args:
            posterior: samples in the normalised, compressed domain.
            mixture: x (F, T), in the same domain.
            level: NF, which undoes the normalisation.
        """
        estimate = self._of_samples(posterior, mixture, level)
        if posterior.heard is not None:
            heard = self.spectral.decompress(posterior.heard * level)
            estimate = torch.lerp(estimate, heard, posterior.listening)
        if self._restraint is not None:
            loud = self.spectral.decompress(mixture * level)
            estimate, self._recent = self._restraint(estimate, loud, self._recent)
        return estimate

    def _of_samples(self, posterior: Posterior, mixture: Tensor, level: Tensor) -> Tensor:
        spectral, speech, how = self.spectral, posterior.speech, self.how
        sampled_noise = posterior.noise is not None and posterior.noise_model is None
        if how == "auto":
            how = "wiener" if sampled_noise else "mean"
        if how == "mean_compressed":
            return spectral.decompress(speech.mean(0) * level)
        if how in FILTERS and posterior.noise is not None and sampled_noise:
            gain = _ratio(speech.abs().square(), posterior.noise.abs().square()).mean(0)
            return spectral.decompress(torch.polar(gain.sqrt() * mixture.abs(), speech.mean(0).angle()) * level)
        if how in FILTERS and posterior.noise_model is not None:
            variance = posterior.noise_model.variance
            V = variance[0] @ variance[1] if isinstance(variance, tuple) else variance
            power = speech.abs().square()
            filtered = _ratio(power, V).mean(0) ** self.exponent * spectral.decompress(mixture * level)
            if how == "wiener":
                return filtered
            weight = self._weight_of_filter(power.mean(0), V, level)
            return weight * filtered + (1 - weight) * self._mean(speech, level)
        return self._mean(speech, level)

    def _mean(self, speech: Tensor, level: Tensor) -> Tensor:
        return self.spectral.decompress(speech * level).mean(0)

    def _weight_of_filter(self, speech: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """(F, 1)."""
        sums = torch.stack([speech.sum(-1, keepdim=True), noise.sum(-1, keepdim=True)]) * level**2
        self._powers = self.forgetting * self._powers.to(sums) + sums
        return _ratio(self._powers[0], self.blend_ratio * self._powers[1])

    def state(self) -> dict[str, Any]:
        """What the next call depends on."""
        return {"powers": self._powers, "recent": self._recent}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._powers, self._recent = state["powers"], state["recent"]
