"""The posterior network: `Compact` that is told the mixture and a guess of the noise variance, and says E[s | x, V].

The model is that of the samplers: x = c(S + nu), S the linear spectrogram of clean speech s = c(S), nu complex
Gaussian of the variance V per bin. One call is the E-step of EM, learnt instead of approximated: the posterior mean of
s, its variance, and V itself for the next call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact, Conv, interleave
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.estimate import HIGHEST_LEVEL, Said
from udse_fast.networks.past import LayerPast, Past

QUIETEST = 1e-10
"""Least noise variance, relative to the power of the loudest bin: 100 dB below it."""

SUREST = 1e-7
"""Least variance of an observation in the compressed domain."""


def compressed_variance(noise_variance: Tensor, power: Tensor) -> Tensor:
    """Variance of c(S + nu) about c(S), for V in the linear domain and p = |c(S + nu)|^2, elementwise.

    Between its limits: V / (1.6 p) where the speech is far above the noise, sqrt(V / 1.273) = E|c(nu)|^2 far below.
    """
    below = 1.273 * noise_variance
    return (noise_variance / torch.sqrt((1.6 * power).square() + below + 1e-16)).clamp_min(SUREST)


def linear_variance(blur: Tensor, power: Tensor) -> Tensor:
    """The V of which `compressed_variance` makes `blur`, elementwise."""
    below, above = 1.273 * blur.square(), 1.6 * power * blur
    return (below + torch.sqrt(below.square() + 4 * above.square())) / 2


def fused(u: Tensor, blur: Tensor, state: Tensor, level2: Tensor) -> tuple[Tensor, Tensor]:
    """Two observations as one: (..., 2) with variances (...), their mean by precision and its variance.

    level2 is infinite where there is no state.
    """
    share = blur / (blur + level2)  # of the state
    return u + share.unsqueeze(-1) * (state - u), (blur * (1 - share)).clamp_min(SUREST)


class CompactPosterior(Compact):
    """E[s | x, V], its variance, V, and a read-out for the ear, in one call.

    Arguments as of `Compact`; `joint` is not for it.
    """

    planes = 5
    """Of the input: the mixture (2), its power, the variance of the noise in it, that over the mixture's power."""
    causal_blocks = (2, 3)
    """Streams of 48 and 64 ms of delay."""
    tells_noise_variance = True
    learning_rate = 1.5e-3

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if "label" in self.conditions:
            raise UdseError("compact-posterior: expected a network of speech, got a joint one")
        self.conditions = ("noisy", "noise_variance")
        width, causal = self.input.weight.shape[0], self.causal_block
        self.noise = Conv(width, 2 * self.stem, (3, 3), causal_block=causal, zero=True)
        self.listening = Conv(width, self.stem, (3, 3), causal_block=causal, zero=True)

    def say(
        self,
        mixture: Tensor,
        noise_variance: Tensor,
        state: Tensor | None = None,
        noise_level: Tensor | None = None,
        past: Past | None = None,
    ) -> Said:
        """One call: of the mixture alone, or of the mixture and a diffused state, u = s + a z.

        Both are observations of s with noise of a known variance per bin, so what they say together is one
        observation: their mean by precision, `fused`. Without a state (or at an infinite a) it is the mixture.

        Args:
            mixture: x, (B, 2, F, T) float32, compressed, its largest modulus about 1.
            noise_variance: a guess of V, (B, F, T) float32: E|nu|^2 where x |x| = S + nu.
            state: u, (B, 2, F, T), then `clean` is E[s | u, x, V] and `log_noise` says nothing new.
            noise_level: its a, (B,) or per frame (B, T); above `HIGHEST_LEVEL` the state is not looked at.
            past: of a causal network, the frames before these; updated.
        """
        u, given, blur = self.observed(mixture, noise_variance, state, noise_level)
        assert past is None or isinstance(past, LayerPast)
        return self._call(u, given, blur, past)

    def observed(
        self, mixture: Tensor, noise_variance: Tensor, state: Tensor | None = None, noise_level: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the arguments of `say` together say about s: u (B, T, F, 2), and the variance of the noise in it, in
        the linear domain and in the compressed one, (B, T, F) each."""
        u = mixture.permute(0, 3, 2, 1).float().contiguous()
        given = noise_variance.float().transpose(1, 2).clamp_min(QUIETEST)
        blur = compressed_variance(given, u.square().sum(-1))
        if state is not None and noise_level is not None:
            level = noise_level.float()
            level = (level.unsqueeze(1) if level.ndim == 1 else level).unsqueeze(-1)
            level2 = torch.where(level > HIGHEST_LEVEL, math.inf, level.square())
            u, blur = fused(u, blur, state.permute(0, 3, 2, 1).float(), level2)
            given = linear_variance(blur, u.square().sum(-1))
        return u, given, blur

    def posterior(
        self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """E[s | u, x, V] and its variance; arguments as of `Compact`, with the mixture and V as conditions."""
        assert conditions.noisy is not None
        assert conditions.noise_variance is not None
        said = self.say(conditions.noisy, conditions.noise_variance, noisy, noise_level, past)
        return said.clean, said.variance

    def _call(self, u: Tensor, given: Tensor, blur: Tensor, past: LayerPast | None) -> Said:
        """The network on an observation u (B, T, F, 2) of s, with noise of the variance `given` in the linear domain
        and `blur` in the compressed one, (B, T, F)."""
        power = u.square().sum(-1)
        level = blur.mean(2).sqrt().clamp(0.03, 3)
        embedding = self.embed(self.noise_level(level).to(self.embed[0].weight.dtype))
        data2 = self.scale.by_label[1].square()
        total = (blur + data2).unsqueeze(-1)
        x = u * total.rsqrt()
        planes = torch.cat(
            [
                x * math.sqrt(2),
                x.square().sum(-1, keepdim=True).add(1e-4).log() / 2,
                (blur / data2).log().unsqueeze(-1) / 4,
                (given.log() / 2 - (power.square() + 1e-8).log() / 2).unsqueeze(-1) / 4,
            ],
            dim=-1,
        )
        h = self._features(planes.permute(0, 3, 1, 2), embedding, past)
        out = interleave(self.output(h, past), self.stem).permute(0, 2, 3, 1).float()
        spread = interleave(self.spread(h, past), self.stem)[:, 0].float()
        noise = interleave(self.noise(h, past), self.stem).float()
        listening = interleave(self.listening(h, past), self.stem)[:, 0].float()

        data2, power = self.scale.by_label[1].square(), u.square().sum(-1)
        total = blur + data2
        skip = (data2 / total).unsqueeze(-1)
        own = torch.sigmoid(torch.logit(skip, eps=1e-6) + 4 * out[..., :1])
        filtered = self._filter(u, torch.cat([own, out[..., 1:9]], dim=-1), out[..., 9:18], past)
        unsure = data2 * blur / total
        clean = filtered + unsure.sqrt().unsqueeze(-1) * out[..., 18:]
        variance = unsure * (2 * spread).clamp(-12, 6).exp()
        of_mixture = torch.sigmoid(4 * noise[:, 0])
        log_noise = of_mixture * (power.square() + 1e-9).log() + (1 - of_mixture) * (given + 1e-9).log()
        log_noise = (log_noise + 4 * noise[:, 1]).clamp(math.log(QUIETEST), 5)
        others = (variance, log_noise, (2 * listening).clamp(-6, 2))
        return Said(clean.permute(0, 3, 2, 1), *(x.transpose(1, 2) for x in others))

    def hidden_matrices(self) -> list[Tensor]:
        """As of `Compact`, without the heads."""
        heads = {id(self.noise.weight), id(self.listening.weight)}
        return [w for w in super().hidden_matrices() if id(w) not in heads]
