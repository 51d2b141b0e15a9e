"""The network for CPUs: an EDM-preconditioned denoiser of 2 to 3 M parameters, about 2 GFLOP per second of audio.

A U-Net over frequency only, a stem that takes frequency by 4, and a stack of dilated convolutions over time on whole
frames at the bottleneck: the frequency axis is where a CPU can save, the time axis is where speech is recognised.
Statistics are per frame, so nothing depends on the length of the signal, and one switch makes the network causal.

Maps are (B, C, T, F) in channels_last: a frame is one contiguous vector, which makes the per-frame norm, the reshape to
frames and the pixel shuffle over frequency free of copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.audio.spectral import Spectral
from udse_fast.errors import UdseError
from udse_fast.networks.base import Float32, Network
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.past import LayerPast, Past

COMPACT_SIZES: dict[str, dict[str, Any]] = {
    "compact": {},
    "compact-joint": {"joint": True},
    "compact-causal": {"causal_block": 4},
}
"""Arguments of `Compact` for the sizes that `udse-fast train --network` knows by name."""


NEIGHBOURS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""(time, frequency) offsets of the bins that the output filter combines."""


class NoiseLevelFeatures(Float32, nn.Module):
    """[sin, cos](w log a): (...) -> (..., 2 n), geometric w. Float32, whatever the rest computes in."""

    frequencies: Tensor

    def __init__(self, count: int = 32) -> None:
        super().__init__()
        low, high = math.log10(0.2), math.log10(8.0)
        # on a CPU also where shapes alone are asked for: on the meta device torch imports sympy for it
        frequencies = torch.logspace(low, high, count, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, noise_level: Tensor) -> Tensor:
        phase = noise_level.log().unsqueeze(-1) * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class DataScale(Float32, nn.Module):
    """sigma_data by label, in float32."""

    by_label: Tensor

    def __init__(self, by_label: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("by_label", torch.tensor(by_label, dtype=torch.float32), persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        return self.by_label[label]


class Conv(nn.Module):
    """Convolution over (time, frequency) that computes in the dtype of its input.

    Over time it is centred, or causal by blocks of `causal_block` frames: a frame then sees the whole of its own block
    and the past. Longer kernels then see the past only.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (1, 1),
        *,
        frequency_stride: int = 1,
        time_dilation: int = 1,
        causal_block: int = 0,
        zero: bool = False,
    ) -> None:
        super().__init__()
        weight = torch.zeros(out_channels, channels, *kernel)
        if not zero:
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.taps, self.reach = kernel[0], (kernel[0] - 1) * time_dilation
        self.frequency_padding = (kernel[1] - frequency_stride) // 2
        self.frequency_stride, self.time_dilation = frequency_stride, time_dilation
        self.causal_block = causal_block

    def forward(self, x: Tensor, past: LayerPast | None = None) -> Tensor:
        """(B, C, T, F) -> (B, C', T, F / stride)."""
        if past is not None:
            return self._next_frames(x, past)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        stride, bands, dilation = (1, self.frequency_stride), self.frequency_padding, (self.time_dilation, 1)
        if not self.reach or not self.causal_block:
            return F.conv2d(x, weight, bias, stride, (self.reach // 2, bands), dilation)
        if self.taps > 3:  # the past only
            return F.conv2d(F.pad(x, (0, 0, self.reach, 0)), weight, bias, stride, (0, bands), dilation)
        out = F.conv2d(F.pad(x, (0, 0, 1, 0)), weight[:, :, :2], bias, stride, (0, bands))
        if self.causal_block == 1:  # no frame has a next one
            return out
        next_frame = F.pad(x[:, :, 1:], (0, 0, 0, 1)) * _next_is_in_block(x, self.causal_block)[:, None]
        return out + F.conv2d(next_frame, weight[:, :, 2:], None, stride, (0, bands))

    def _next_frames(self, x: Tensor, past: LayerPast) -> Tensor:
        """The same for one block that follows `past`, as one matrix product: a few frames are too few for conv2d."""
        frames = F.pad(x.permute(0, 2, 3, 1), (0, 0, self.frequency_padding, self.frequency_padding))
        B, T, bands, C = frames.shape
        if self.reach:
            before, after = (self.reach, 0) if self.taps > 3 else (1, 1)  # its last frame has no next one
            frames = F.pad(past.before(frames, before), (0, 0, 0, 0, 0, after))
        rows, columns = self.weight.shape[2:]
        out_bands = (bands - columns) // self.frequency_stride + 1
        over_batch, over_time, over_bands, _ = frames.contiguous().stride()
        windows = frames.contiguous().as_strided(
            (B, T, out_bands, rows, columns * C),  # C runs fastest, then the columns: one piece of memory
            (over_batch, over_time, over_bands * self.frequency_stride, over_time * self.time_dilation, 1),
        )
        matrix = self.weight.permute(0, 2, 3, 1).reshape(len(self.weight), -1)  # channels_last: a view
        out = F.linear(windows.reshape(B, T, out_bands, -1), matrix.to(x.dtype), self.bias.to(x.dtype))
        return out.permute(0, 3, 1, 2)


def _next_is_in_block(x: Tensor, block: int) -> Tensor:
    """(T,) 1 where the next frame belongs to the same block, else 0, for x (B, C, T, F)."""
    number = torch.ones_like(x[0, 0, :, 0], dtype=torch.float32).cumsum(0)  # unlike arange, exports for any device
    return (number.remainder(block) != 0).to(x.dtype)


class FilmNorm(nn.Module):
    """SiLU(norm(x) (1 + scale) + shift): every frame to mean 0 and variance 1, then FiLM by the embedding."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.film = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, T, F); embedding (B, T or 1, E)."""
        B, C, T, bands = x.shape
        frames = x.permute(0, 2, 3, 1).reshape(B, T, bands * C)
        frames = F.layer_norm(frames, (bands * C,), eps=1e-4)
        scale, shift = self.modulation(embedding.to(self.film.weight.dtype)).to(x.dtype).unsqueeze(2).chunk(2, dim=-1)
        modulated = torch.addcmul(shift, frames.view(B, T, bands, C), 1 + scale)
        return F.silu(modulated).permute(0, 3, 1, 2)

    def modulation(self, embedding: Tensor) -> Tensor:
        """Scale and shift of the channels, (B, T or 1, 2 C)."""
        modulation: Tensor = self.film(embedding)
        return modulation


class Residual(nn.Module):
    """x + conv(SiLU(conv(FilmNorm(x)))); the last convolution starts at zero."""

    def __init__(self, channels: int, embedding: int, first: Conv, kernel: tuple[int, int], causal_block: int) -> None:
        super().__init__()
        self.norm = FilmNorm(channels, embedding)
        self.conv1 = first
        self.conv2 = Conv(channels, channels, kernel, causal_block=causal_block, zero=True)

    def forward(self, x: Tensor, embedding: Tensor, past: LayerPast | None = None) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x, embedding), past)), past)


class Blocks(nn.ModuleList):
    """Residual blocks one after the other."""

    def forward(self, x: Tensor, embedding: Tensor, past: LayerPast | None = None) -> Tensor:
        for block in self:
            x = block(x, embedding, past)
        return x


def frames_of(planes: Tensor) -> Tensor:
    """Real and imaginary part (B, 2, F, T) -> (B, T, F, 2) float32."""
    return planes.permute(0, 3, 2, 1).float().contiguous()


def input_planes(x: Tensor) -> Tensor:
    """A spectrogram (B, T, F, 2) of about unit power, and its log-magnitude: (B, T, F, 3)."""
    log_power = x.square().sum(-1, keepdim=True).add(1e-4).log()
    return torch.cat([x * math.sqrt(2), log_power / 2], dim=-1)


def interleave(x: Tensor, factor: int) -> Tensor:
    """Pixel shuffle over frequency: (B, factor C, T, F) -> (B, C, T, factor F), a view of a channels_last map."""
    B, C, T, bands = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, T, bands * factor, C // factor).permute(0, 3, 1, 2)


class Compact(Network):
    """Denoiser D(u, a) of the unit-gain state u = s_t / delta = s_0 + a z, E|z|^2 = 1.

    `D = sum_k w_k u_k + c_out F` over the bin itself and its 8 neighbours in time and frequency, with F and the complex
    weights w_k from the network on c_in u and its log-magnitude. The real part of the bin's own weight starts at EDM's
    c_skip (Karras et al. 2022, Table 1), the others at 0. Overlapping windows make neighbours coherent where there is
    speech, not where there is noise: after 100 steps such a filter is ahead of a gain per bin after 113
    (`udse_fast/priors/README.md`).

    Args:
        bins: F.
        channels: of the U-Net's levels, each at half the bands of the one before.
        blocks: residual blocks of each level, on the way down and again on the way up.
        stem: frequency stride of the first convolution.
        frame_channels: width of the stack over time.
        dilations: of its layers.
        embedding: width of the noise-level embedding.
        sigma_data: root mean square of the training spectrograms; of a joint network (noise, speech), by label.
        joint: one network for speech (label 1) and noise (label 0).
        causal_block: 0, or frames of a block that sees itself and the past only; `set_causal_block` changes it.
    """

    predicts = "clean"
    planes: ClassVar[int] = 3
    """Of the input: real and imaginary part, log-magnitude."""
    has_posterior_variance = True
    causal_blocks: ClassVar[Sequence[int]] = (2, 3, 4, 5)
    spectral = Spectral(hop_length=255, window="sqrt_hann")  # half overlap: half the frames, hence half the cost
    learning_rate = 2e-3  # of Muon and AdamW together
    adam_betas = (0.9, 0.98)
    has_data_scale = True
    casts_itself = True
    has_core = True

    def __init__(
        self,
        bins: int = 256,
        channels: Sequence[int] = (32, 48, 64),
        blocks: Sequence[int] = (1, 2, 2),
        stem: int = 4,
        frame_channels: int = 192,
        dilations: Sequence[int] = (1, 2, 4, 8, 1, 2),
        embedding: int = 128,
        sigma_data: float | Sequence[float] = 0.06,
        joint: bool = False,
        causal_block: int = 0,
    ) -> None:
        super().__init__()
        levels = len(channels)
        if bins % (stem * 2 ** (levels - 1)):
            raise UdseError(f"bins: expected a multiple of {stem * 2 ** (levels - 1)}, got {bins}")
        self.bins, self.stem, self.causal_block = bins, stem, causal_block
        self.conditions = ("label",) if joint else ()
        by_label = [sigma_data] * 2 if isinstance(sigma_data, (int, float)) else list(sigma_data)
        self.scale = DataScale(by_label)
        causal = causal_block

        self.noise_level = NoiseLevelFeatures()
        self.embed = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.label = nn.Embedding(2, embedding) if joint else None
        if self.label is not None:  # a joint network that starts from a speech prior starts as that prior
            nn.init.zeros_(self.label.weight)

        def block(width: int) -> Residual:
            first = Conv(width, width, (3, 3), causal_block=causal)
            return Residual(width, embedding, first, (3, 3), causal)

        def block_stack(level: int) -> Blocks:
            return Blocks(block(channels[level]) for _ in range(blocks[level]))

        self.input = Conv(self.planes, channels[0], (3, 2 * stem), frequency_stride=stem, causal_block=causal)
        self.band = nn.Parameter(torch.zeros(channels[0], 1, bins // stem))  # where on the frequency axis we are
        self.down_blocks = nn.ModuleList(block_stack(level) for level in range(levels))
        self.down = nn.ModuleList(
            Conv(channels[i], channels[i + 1], (1, 4), frequency_stride=2) for i in range(levels - 1)
        )
        frame_size = channels[-1] * (bins // stem // 2 ** (levels - 1))
        self.to_frames = Conv(frame_size, frame_channels)
        self.over_time = Blocks(
            Residual(
                frame_channels,
                embedding,
                Conv(frame_channels, frame_channels, (5, 1), time_dilation=d, causal_block=causal),
                (1, 1),
                causal,
            )
            for d in dilations
        )
        self.from_frames = Conv(frame_channels, frame_size, zero=True)
        self.up_blocks = nn.ModuleList(block_stack(level) for level in range(levels))
        self.up = nn.ModuleList(Conv(channels[i + 1], 2 * channels[i]) for i in range(levels - 1))
        self.output = Conv(channels[0], 20 * stem, (3, 3), causal_block=causal, zero=True)
        self.spread = Conv(channels[0], stem, (3, 3), causal_block=causal, zero=True)

    def set_causal_block(self, frames: int) -> None:
        """Another block length for a causal network: its weights are trained for `causal_blocks`."""
        if not self.causal_block or frames < 1:
            raise UdseError(f"expected a causal network and a block of 1 frame or more, got {frames} frames")
        for module in self.modules():
            if isinstance(module, Compact | Conv) and module.causal_block:
                module.causal_block = frames

    def posterior(
        self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean of the clean spectrogram, and how far from it the clean spectrogram is expected to be.

        Args:
            noisy: u, (B, 2, F, T) float32.
            noise_level: a, one per item (B,) or per frame (B, T).
            conditions: the label, of a joint network; without one it is speech.
            past: of a causal network, the frames before these, T a multiple of `causal_block`; updated.

        Returns:
            E[s_0 | u] (B, 2, F, T) and E|s_0 - E[s_0 | u]|^2 (B, F, T), float32.
        """
        assert past is None or isinstance(past, LayerPast)
        level = noise_level.float()
        level = level.unsqueeze(1) if level.ndim == 1 else level  # (B, T or 1)
        embedding = self.told(self._embedded(level), conditions, noisy.shape[-1])
        label = conditions.label
        if label is None or self.label is None:
            label = torch.ones_like(noisy[:, 0, 0, 0], dtype=torch.long)
        if self.label is not None:
            embedding = embedding + self.label(label).unsqueeze(1)

        u = frames_of(noisy)
        a2 = level.square()[:, :, None, None]
        data2 = self.scale(label).square()[:, None, None, None]
        planes = input_planes(u * (a2 + data2).rsqrt())
        h = self._features(planes.permute(0, 3, 1, 2), embedding, past)
        clean, variance = self._estimate(h, u, a2, data2, past)
        return clean.permute(0, 3, 2, 1), variance.transpose(1, 2)

    def _embedded(self, level: Tensor) -> Tensor:
        """Of noise levels (B, T or 1) -> (B, T or 1, E)."""
        embedded: Tensor = self.embed(self.noise_level(level).to(self.embed[0].weight.dtype))
        return embedded

    def _estimate(
        self, h: Tensor, u: Tensor, a2: Tensor, data2: Tensor, past: LayerPast | None
    ) -> tuple[Tensor, Tensor]:
        """What the heads make of the features (B, C, T, F / stem): mean (B, T, F, 2) and variance (B, T, F)."""
        out = interleave(self.output(h, past), self.stem).permute(0, 2, 3, 1).float()  # (B, T, F, 20)
        spread = interleave(self.spread(h, past), self.stem)[:, 0].float()
        total = a2 + data2
        own = torch.sigmoid(torch.logit(data2 / total, eps=1e-6) + 4 * out[..., :1])
        real, imag = torch.cat([own, out[..., 1:9]], dim=-1), out[..., 9:18]
        filtered = self._filter(u, real, imag, past)
        unsure = data2 * a2 / total  # posterior variance of Gaussian data
        clean = filtered + unsure.sqrt() * out[..., 18:]
        return clean, unsure[..., 0] * (2 * spread).clamp(-12, 6).exp()

    def told(self, embedding: Tensor, conditions: Conditions, frames: int) -> Tensor:
        """The embedding (B, T or 1, E) of networks that are told of more than noise level and label, (B, T or 1, E)."""
        return embedding

    def _filter(self, u: Tensor, real: Tensor, imag: Tensor, past: LayerPast | None) -> Tensor:
        """sum_k w_k u_k: u (B, T, F, 2), complex weights (B, T, F, 9), the bin itself first -> (B, T, F, 2)."""
        T, bands = u.shape[1:3]
        with_past = F.pad(u, (0, 0, 0, 0, 1, 0)) if past is None else past.before(u, 1)
        padded = F.pad(with_past, (0, 0, 1, 1, 0, 1))
        shifted = [padded[:, 1 + dt : 1 + dt + T, 1 + df : 1 + df + bands] for dt, df in NEIGHBOURS]
        if self.causal_block and past is None:  # the last frame of a block may not look at the next block
            inside = _next_is_in_block(u.permute(0, 3, 1, 2), self.causal_block)[:, None, None]
            shifted = [s * inside if dt > 0 else s for s, (dt, _) in zip(shifted, NEIGHBOURS, strict=True)]
        near = torch.stack(shifted, dim=-1)
        u_real, u_imag = near[..., 0, :], near[..., 1, :]
        return torch.stack([(real * u_real - imag * u_imag).sum(-1), (real * u_imag + imag * u_real).sum(-1)], dim=-1)

    def hidden_matrices(self) -> list[Tensor]:
        """The weights that map hidden features to hidden features (what Muon is for): not the first, not the last."""
        outer = {id(self.input.weight), id(self.output.weight), id(self.spread.weight)}
        convolutions = [m.weight for m in self.modules() if isinstance(m, Conv) and id(m.weight) not in outer]
        return convolutions + [m.weight for m in self.embed if isinstance(m, nn.Linear)]

    @classmethod
    def from_prior(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a prior: planes of the input that it does not have weigh nothing yet."""
        kernel = weights["input.weight"]
        missing = max(0, cls.planes - kernel.shape[1])
        return {**weights, "input.weight": F.pad(kernel, (0, 0, 0, 0, 0, missing))}

    @classmethod
    def made_causal(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a centred network as the start of a causal one.

        The long kernels over time move back by half their length: what they read of the future is dropped.
        """

        def moved(name: str, weight: Tensor) -> Tensor:
            if not name.startswith("over_time") or weight.ndim != 4 or weight.shape[2] <= 3:
                return weight
            half = weight.shape[2] // 2
            return torch.cat([torch.zeros_like(weight[:, :, :half]), weight[:, :, : half + 1]], dim=2)

        return {name: moved(name, weight) for name, weight in weights.items()}

    def loss_weight(self, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Weight of ||sigma S + z||^2 that makes the denoising loss 1 / c_out^2 weighted, `(a^2 + sd^2) / sd^2`."""
        label = conditions.label
        label = torch.ones_like(noise_level, dtype=torch.long) if label is None else label
        return 1 + (noise_level / self.scale(label)).square()

    def _features(
        self,
        x: Tensor,
        embedding: Tensor,
        past: LayerPast | None,
        at_bottleneck: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """What the heads read: input planes (B, P, T, F) -> (B, C, T, F / stem).

        `at_bottleneck` is applied to the frames (B, C', T, 1) before the stack over time.
        """
        dtype = torch.bfloat16 if self.training_dtype is torch.bfloat16 else self.input.weight.dtype
        h = self.input(x.to(dtype), past) + self.band.to(dtype)
        skips = []
        for level, blocks in enumerate(self.down_blocks):
            h = blocks(h, embedding, past)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        h = h + self._over_time(h, embedding, past, at_bottleneck)
        for level in reversed(range(len(self.up_blocks))):
            if level < len(self.up):
                h = interleave(self.up[level](h), 2) + skips[level]
            h = self.up_blocks[level](h, embedding, past)
        return F.silu(h)

    def _over_time(
        self,
        h: Tensor,
        embedding: Tensor,
        past: LayerPast | None,
        at_bottleneck: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        B, C, T, bands = h.shape
        frames = h.permute(0, 2, 3, 1).reshape(B, T, 1, bands * C).permute(0, 3, 1, 2)
        frames = self.to_frames(frames)
        if at_bottleneck is not None:
            frames = at_bottleneck(frames)
        frames = self.over_time(frames, embedding, past)
        return self.from_frames(frames).permute(0, 2, 3, 1).reshape(B, T, bands, C).permute(0, 3, 1, 2)
