"""NCSN++ (Song et al. 2021) in the form and the sizes published with UDiffSE and ParaDiffUSE.

A U-Net of BigGAN residual blocks with FIR resampling (Karras et al. 2020), progressive input and output, one
attention block at the bottleneck and Gaussian Fourier features of log t. The names `all_modules.N` are those
of the published checkpoints, so that their `state_dict` loads without renaming.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.errors import UdseError
from udse_fast.networks.base import Float32, Network, Prediction
from udse_fast.networks.conditions import NOTHING, Conditions

FEW_CHANNELS = 32
"""Of maps whose norms are worth a copy."""
PUBLISHED_SIZES: dict[str, dict[str, Any]] = {
    "ncsnpp-5m": {"nf": 96, "ch_mult": (1, 1, 1, 1)},
    "ncsnpp-5m-joint": {"nf": 96, "ch_mult": (1, 1, 1, 1), "joint": True},
    "ncsnpp-28m": {"nf": 128, "ch_mult": (1, 2, 2, 2)},
}
"""Arguments of `NCSNpp` for the published sizes: 5.2 M, 5.9 M (joint speech and noise), 27.7 M parameters."""


class GaussianFourierFeatures(Float32, nn.Module):
    """[sin, cos](2 pi W log t): (B, T) -> (B, T, 2 nf). Float32, whatever the rest computes in."""

    def __init__(self, size: int, scale: float = 16.0) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(size) * scale, requires_grad=False)

    def forward(self, time: Tensor) -> Tensor:
        phase = time.float().log().unsqueeze(-1) * self.W * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class Downsample(nn.Module):
    """Halve both axes after the low-pass [1, 3, 3, 1] / 8 on each: (B, C, F, T) -> (B, C, F/2, T/2)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


class PointwiseLinear(nn.Module):
    """Linear map over channels, (B, N, C) -> (B, N, C'), with the published layout of the weight: (C, C')."""

    def __init__(self, channels: int, out_channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels, out_channels))
        self.b = nn.Parameter(torch.zeros(out_channels))
        _variance_scaling(self.W, scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W.t(), self.b)


class Attention(nn.Module):
    """Single-head self-attention over all positions of a map; the matrix of weights is never stored."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _group_norm(channels)
        self.NIN_0 = PointwiseLinear(channels, channels)
        self.NIN_1 = PointwiseLinear(channels, channels)
        self.NIN_2 = PointwiseLinear(channels, channels)
        self.NIN_3 = PointwiseLinear(channels, channels, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.GroupNorm_0(x).flatten(2).transpose(1, 2)  # (B, F T, C)
        query, key, value = self.NIN_0(positions), self.NIN_1(positions), self.NIN_2(positions)
        # Four dimensions (one head): the fused kernels take no other shape.
        attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        return (x + self.NIN_3(attended).transpose(1, 2).reshape(x.shape)) / math.sqrt(2)


class ResidualBlock(nn.Module):
    """BigGAN residual block; `resample` is "down", "up" or None; `film` scales by the embedding, too."""

    def __init__(
        self, channels: int, out_channels: int, embedding: int, film: bool, resample: str | None = None
    ) -> None:
        super().__init__()
        self.film = film
        self.resample = {None: None, "down": Downsample(), "up": upsample}[resample]
        self.GroupNorm_0 = _group_norm(channels)
        self.Conv_0 = _conv(channels, out_channels, 3)
        self.Dense_0 = _linear(embedding, out_channels * (2 if film else 1))
        self.GroupNorm_1 = _group_norm(out_channels)
        self.Conv_1 = _conv(out_channels, out_channels, 3, scale=0.0)
        self.has_shortcut = channels != out_channels or resample is not None
        if self.has_shortcut:
            self.Conv_2 = _conv(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, C, F, T) and the activated embedding (B, 1 or frames of the output, E) -> (B, C', F', T').

        `skip`: a map whose channels follow those of x, which then has fewer than C.
        """
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        h = F.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h)
        condition = self.Dense_0(embedding).transpose(1, 2).unsqueeze(2)  # (B, C' or 2 C', 1, 1 or T')
        if self.film:
            scale, shift = condition.chunk(2, dim=1)
            h = self.GroupNorm_1(h) * (1 + scale) + shift
        else:
            h = self.GroupNorm_1(h + condition)
        h = self.Conv_1(F.silu(h))
        if self.has_shortcut:
            x = self.Conv_2(x)
        return (x + h) / math.sqrt(2)


class PyramidInput(nn.Module):
    """Adds the downsampled input of the network to the map of a level."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.Conv_0 = _conv(channels, out_channels, 1)

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        summed: Tensor = self.Conv_0(pyramid) + h
        return summed


class MapNorm(nn.GroupNorm):
    """Group norm of maps.

    torch adds up maps in the order of channels_last position by position, which loses digits, and other maps in
    pieces. The copy to the other order costs a third of the network's time where there are many channels.
    """

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h.contiguous() if h.shape[1] <= FEW_CHANNELS else h)


class ActivatedNorm(MapNorm):
    """Of the progressive output: SiLU(norm(h))."""

    def forward(self, h: Tensor) -> Tensor:
        return F.silu(super().forward(h))


Fusion = Callable[[str, int, int], nn.Module | None]
"""(place, channels, height in bins) of a map -> the module that tells the map the conditions, called with both; or
None. Places: "input", "down" (before the pyramid's map is added), "bottleneck" (after its attention), "up"."""


class NCSNpp(Network):
    """The published noise predictor: the score is `-predict_noise(s, t) / sigma(t)`.

    Args:
        nf: channels of the first level.
        ch_mult: multiple of `nf` at each level; each level halves frequency and time.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attn_resolutions: heights (in bins) of the levels with attention, besides the bottleneck's.
        joint: one network for speech (label 1) and noise (label 0), by a label embedding and FiLM.
        image_size: number of bins F that `attn_resolutions` and `fusion` refer to.
        fusion: of networks that are told more than the label; not for configurations.
    """

    predicts: ClassVar[Prediction] = "noise"
    frame_multiple = 64
    planes: ClassVar[int] = 2
    """Real planes of the input, and of the progressive output."""

    def __init__(
        self,
        nf: int = 96,
        ch_mult: Sequence[int] = (1, 1, 1, 1),
        num_res_blocks: int = 1,
        attn_resolutions: Sequence[int] = (),
        joint: bool = False,
        image_size: int = 256,
        fusion: Fusion | None = None,
    ) -> None:
        super().__init__()
        levels = len(ch_mult)
        if not (1 <= levels <= 7 and 1 <= num_res_blocks <= 16 and nf >= 8 and nf % 4 == 0 and min(ch_mult) >= 1):
            raise UdseError(
                "expected an NCSN++ of 1 to 7 levels of 1 to 16 residual blocks and nf a multiple of 4, got "
                f"nf={nf}, ch_mult={tuple(ch_mult)}, num_res_blocks={num_res_blocks}"
            )
        self.levels = levels
        self.num_res_blocks = num_res_blocks
        self.joint = joint
        self.conditions = ("label",) if joint else ()
        self.attention_levels = [level for level in range(levels) if image_size >> level in attn_resolutions]
        embedding = 4 * nf

        self.downsample = Downsample()
        self.output_layer = nn.Conv2d(self.planes, 2, 1)
        if joint:
            self.label_emb = nn.Embedding(2, embedding)

        modules: list[nn.Module] = [
            GaussianFourierFeatures(nf),
            _linear(2 * nf, embedding),
            _linear(embedding, embedding),
            _conv(self.planes, nf, 3),
        ]
        self.fuses: list[bool] = []
        """Of the places in order, whether there is a module."""

        def fused(place: str, level: int) -> list[nn.Module]:
            module = None if fusion is None else fusion(place, channels, image_size >> level)
            self.fuses.append(module is not None)
            return [] if module is None else [module]

        skips, channels = [nf], nf
        modules += fused("input", 0)
        for level, multiple in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                modules.append(ResidualBlock(channels, nf * multiple, embedding, joint))
                channels = nf * multiple
                if level in self.attention_levels:
                    modules.append(Attention(channels))
                skips.append(channels)
            if level < levels - 1:
                modules.append(ResidualBlock(channels, channels, embedding, joint, resample="down"))
                modules += fused("down", level + 1)
                modules.append(PyramidInput(self.planes, channels))
                skips.append(channels)
        modules += [
            ResidualBlock(channels, channels, embedding, joint),
            Attention(channels),
            *fused("bottleneck", levels - 1),
            ResidualBlock(channels, channels, embedding, joint),
        ]
        for level, multiple in reversed(list(enumerate(ch_mult))):
            for _ in range(num_res_blocks + 1):
                modules.append(ResidualBlock(channels + skips.pop(), nf * multiple, embedding, joint))
                channels = nf * multiple
            if level in self.attention_levels:
                modules.append(Attention(channels))
            modules += fused("up", level)
            modules += [_group_norm(channels, ActivatedNorm), _conv(channels, self.planes, 3, scale=0.0)]
            if level > 0:
                modules.append(ResidualBlock(channels, channels, embedding, joint, resample="up"))
        self.all_modules = nn.ModuleList(modules)

    def predict_noise(self, state: Tensor, time: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Predict the noise in a diffused spectrogram.

        Args:
            state: real and imaginary part, (B, 2, F, T), T a multiple of 2^(levels - 1), as F.
            time: diffusion time t > 0, (B,), or one per frame, (B, T).
            conditions: the label, of a joint network; without one it is speech.

        Returns:
            (B, 2, F, T) float32.
        """
        noise: Tensor = self.output_layer(self._progressive(state, time, conditions))
        return noise.float()

    def _progressive(self, planes: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The progressive output, (B, P, F, T), of the input planes (B, P, F, T)."""
        module = iter(self.all_modules)
        dtype = self.output_layer.weight.dtype
        time = time if time.ndim == 2 else time[:, None]  # (B, 1 or T)
        x = planes.to(dtype)

        embedding = next(module)(time).to(dtype)
        embedding = next(module)(embedding)
        embedding = next(module)(F.silu(embedding))  # (B, 1 or T, E)
        if self.joint:
            label = conditions.label
            label = torch.ones_like(time[:, 0], dtype=torch.long) if label is None else label.long()
            embedding = embedding + self.label_emb(label).unsqueeze(1)
        # Level l sees every 2^l-th frame; a time common to all frames keeps its one entry.
        embeddings = [F.silu(embedding)[:, :: 2**level] for level in range(self.levels)]

        fuses = iter(self.fuses)

        def fused(h: Any) -> Any:
            return next(module)(h, conditions) if next(fuses) else h

        # `h` goes from module to module as it is: the fast ones hand on more than a tensor
        pyramid = x
        h = fused(next(module)(x))
        skips = [h]
        for level in range(self.levels):
            for _ in range(self.num_res_blocks):
                h = next(module)(h, embeddings[level])
                if level in self.attention_levels:
                    h = next(module)(h)
                skips.append(h)
            if level < self.levels - 1:
                h = fused(next(module)(h, embeddings[level + 1]))
                pyramid = self.downsample(pyramid)
                h = next(module)(pyramid, h)
                skips.append(h)

        h = next(module)(h, embeddings[-1])
        h = fused(next(module)(h))
        h = next(module)(h, embeddings[-1])

        for level in reversed(range(self.levels)):
            for _ in range(self.num_res_blocks + 1):
                h = next(module)(h, embeddings[level], skips.pop())
            if level in self.attention_levels:
                h = next(module)(h)
            h = fused(h)
            output = next(module)(h)
            output = next(module)(output)
            pyramid = output if level == self.levels - 1 else upsample(pyramid) + output
            if level > 0:
                h = next(module)(h, embeddings[level - 1])
        return pyramid


def upsample(x: Tensor) -> Tensor:
    """Double both axes by the interpolator [1, 3, 3, 1] / 4 on each: (B, C, F, T) -> (B, C, 2 F, 2 T).

    Those are the weights of bilinear interpolation, which has fast kernels everywhere; the border of zeros
    makes the edges those of a zero-padded filter.
    """
    doubled = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2.0, mode="bilinear", align_corners=False)
    return doubled[:, :, 2:-2, 2:-2]


def _group_norm(channels: int, norm: type[MapNorm] = MapNorm) -> MapNorm:
    return norm(min(channels // 4, 32), channels, eps=1e-6)


def _conv(channels: int, out_channels: int, size: int, scale: float = 1.0) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, size, padding=size // 2)
    _variance_scaling(conv.weight, scale)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _linear(features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(features, out_features)
    _variance_scaling(linear.weight, 1.0)
    nn.init.zeros_(linear.bias)
    return linear


def _variance_scaling(weight: Tensor, scale: float) -> None:
    """Uniform of variance scale / mean(fan in, fan out) (Ho et al. 2020); 0 starts a block as identity."""
    receptive_field = weight[0, 0].numel()
    mean_fan = receptive_field * (weight.shape[0] + weight.shape[1]) / 2
    bound = math.sqrt(3 * max(scale, 1e-10) / mean_fan)
    nn.init.uniform_(weight, -bound, bound)
