"""NCSN++ that is told the recording, as two more planes of its input: the score network of SGMSE+.

The names of its weights are those of the public checkpoints, of both generations: "ncsnpp" (Richter et al.: Speech
enhancement and dereverberation with diffusion-based generative models, TASLP 2023) and "ncsnpp_v2" (Richter et al.:
Investigating training objectives for generative speech enhancement, 2024).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from udse_fast.audio.spectral import PEAK_PADDINGS, PeakSpectral
from udse_fast.checks import Range, real_number
from udse_fast.errors import UdseError
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.latent_attention import LatentFusion
from udse_fast.networks.ncsnpp import NCSNpp
from udse_fast.sampling.sde import SDE

CONDITIONAL_SIZES: dict[str, dict[str, Any]] = {
    "ncsnpp-conditional-5m": {"nf": 96, "ch_mult": (1, 1, 1, 1)},
    "ncsnpp-conditional-28m": {"nf": 128, "ch_mult": (1, 2, 2, 2)},
    "ncsnpp-conditional-65m": {
        "nf": 128,
        "ch_mult": (1, 1, 2, 2, 2, 2, 2),
        "num_res_blocks": 2,
        "attn_resolutions": (16,),
    },
}
"""Arguments of `ConditionalNCSNpp` for the published sizes: 5.2 M, 27.8 M, 65.6 M parameters."""

FORWARD: Final = {
    "backbone": ("ncsnpp", "ncsnpp_v2"),
    "loss_type": ("score_matching", "denoiser", "data_prediction"),
    "network_scaling": (None, "1/sigma", "1/t"),
    "c_in": ("1", "edm"),
    "c_out": ("1", "sigma", "1/sigma", "edm"),
    "c_skip": ("0", "edm"),
}
"""What each argument of the forward pass may be; the first is the default of the public code."""


class ConditionalNCSNpp(NCSNpp):
    """S(x_t, t) of a diffusion that drifts to the recording y.

    With h the progressive output of the network and `out` its last convolution, "ncsnpp" is

        S = -out(h(x_t, y, t) / t)

    and "ncsnpp_v2", with F = scaling out(h(c_in x_t, c_in y, t)),

        score_matching:   S = c_skip x_t + c_out F
        denoiser:         S = (F - x_t) / sigma^2, where F estimates the mean delta x_0 + (1 - delta) y
        data_prediction:  x_0 = c_skip x_t + c_out F, and S from it by Tweedie's formula

    "edm": c_in = 1 / r, c_out = sigma d / r, c_skip = d^2 / r^2, r^2 = sigma^2 + d^2 (Karras et al. 2022).

    Args:
        backbone, loss_type, network_scaling, c_in, c_out, c_skip: see `FORWARD`; all but the first are of "ncsnpp_v2".
        sigma_data: d.
        latent_size: H of a tagger's latent, to which the bottleneck attends (Ex-Diff); 0: none.
        latent_pooling: see `LatentAttention`.
        arguments: of `NCSNpp`, but `joint`.
    """

    predicts = "score"
    drifts = True
    planes = 4
    spectral = PeakSpectral(frame_multiple=NCSNpp.frame_multiple)

    def __init__(
        self,
        backbone: str = "ncsnpp",
        loss_type: str = "score_matching",
        network_scaling: str | None = None,
        c_in: str = "1",
        c_out: str = "1",
        c_skip: str = "0",
        sigma_data: float = 0.1,
        latent_size: int = 0,
        latent_pooling: str = "frames",
        **arguments: Any,
    ) -> None:
        given = dict(zip(FORWARD, (backbone, loss_type, network_scaling, c_in, c_out, c_skip), strict=True))
        for name, value in given.items():
            if value not in FORWARD[name]:
                known = " or ".join(map(str, FORWARD[name]))
                raise UdseError(f"{name}: expected {known}, got {value!r}")
        if backbone == "ncsnpp" and any(given[name] != known[0] for name, known in FORWARD.items()):
            raise UdseError("backbone: expected ncsnpp_v2 with a loss_type, network_scaling or c_*, got ncsnpp")
        if arguments.pop("joint", False):
            raise UdseError("ncsnpp-conditional: expected a network of speech, got a joint one")

        def fusion(place: str, channels: int, bins: int) -> LatentFusion | None:
            return LatentFusion(channels, latent_size, latent_pooling) if place == "bottleneck" else None

        super().__init__(fusion=fusion if latent_size else None, **arguments)
        self.conditions = ("noisy", "latent") if latent_size else ("noisy",)
        if latent_size:
            self.condition_sizes = {"H": latent_size}
        self.backbone, self.loss_type, self.network_scaling = backbone, loss_type, network_scaling
        self.c_in, self.c_out, self.c_skip = c_in, c_out, c_skip
        self.sigma_data = real_number("sigma_data", sigma_data, Range(0, excluded=True))
        self.spectral = replace(self.spectral, padding=PEAK_PADDINGS[backbone == "ncsnpp_v2"])

    def predict_score(self, state: Tensor, time: Tensor, sde: SDE, conditions: Conditions = NOTHING) -> Tensor:
        """S(x_t, t).

        Args:
            state: x_t, real and imaginary part, (B, 2, F, T), T a multiple of 2^(levels - 1), as F.
            time: t > 0, (B,), or one per frame, (B, T).
            sde: the process, whose drift is towards y.
            conditions: the recording y, as the state.

        Returns:
            (B, 2, F, T) float32.
        """
        assert conditions.noisy is not None
        noisy, t = conditions.noisy, _over_bins(time)
        if self.backbone == "ncsnpp":
            planes = torch.cat([state, noisy], dim=1)
            h = self._progressive(planes, time, conditions)
            score: Tensor = -self.output_layer((h / t).to(h.dtype))
            return score.float()
        sigma = torch.as_tensor(sde.sigma(t))
        F = self._scaled_output(state, noisy, time, sigma, conditions)
        if self.loss_type == "denoiser":
            return (F - state) / sigma**2
        predicted = self._factor(self.c_skip, "skip", sigma) * state + self._factor(self.c_out, "out", sigma) * F
        if self.loss_type == "score_matching":
            return predicted
        delta = torch.as_tensor(sde.delta(t))
        return (delta * predicted + (1 - delta) * noisy - state) / sigma**2

    def _scaled_output(
        self, state: Tensor, noisy: Tensor, time: Tensor, sigma: Tensor, conditions: Conditions
    ) -> Tensor:
        """F of "ncsnpp_v2", (B, 2, F, T) float32."""
        planes = torch.cat([state, noisy], dim=1) * self._factor(self.c_in, "in", sigma)
        output = self.output_layer(self._progressive(planes, time, conditions)).float()
        scaling = {None: 1.0, "1/sigma": 1 / sigma, "1/t": 1 / _over_bins(time)}[self.network_scaling]
        return output * scaling

    def _factor(self, kind: str, place: str, sigma: Tensor) -> Tensor | float:
        """c_in, c_out or c_skip."""
        if kind != "edm":
            known: dict[str, Tensor | float] = {"0": 0.0, "1": 1.0, "sigma": sigma, "1/sigma": 1 / sigma}
            return known[kind]
        d, square = self.sigma_data, sigma**2 + self.sigma_data**2
        return {"in": square**-0.5, "out": sigma * d * square**-0.5, "skip": d**2 / square}[place]


def _over_bins(time: Tensor) -> Tensor:
    """Times that multiply maps: (B,) or (B, T) -> (B, 1, 1, 1 or T)."""
    return time[:, None, None, None] if time.ndim == 1 else time[:, None, None]
