"""The networks at the hardware's rate: NCSN++ with fused layers, and calls replayed from CUDA graphs."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.cuda_graphs import Replayed, addresses
from udse_fast.errors import UdseError
from udse_fast.kernels.fused_layers import norm_film_silu, resample, residual_sum
from udse_fast.networks.ncsnpp import Attention, Downsample, NCSNpp, ResidualBlock
from udse_fast.networks.score_network import ScoreNetwork, first_line

HALF_POWER = 1 / math.sqrt(2)
TRIAL_FRAMES, TRIAL_TIME = 16, 0.5
TRIAL_TOLERANCE = 0.3  # 16 bits differ by a few hundredths; what is broken is further off, or not finite


class FusedNorm(nn.Module):
    """A group norm with what stands around it in one pass: SiLU(norm(x + before) * scale + shift)."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.groups = norm.weight, norm.bias, norm.num_groups

    def forward(
        self,
        x: Tensor,
        before: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activate: bool = False,
    ) -> Tensor:
        """(B, C, F, T) and conditions (B, C, 1, 1 or T) -> (B, C, F, T)."""
        return norm_film_silu(x, self.weight, self.bias, self.groups, before, scale, shift, activate)


class FusedResidualBlock(nn.Module):
    """A `ResidualBlock` with biases folded into norms and sum, 1 + scale and 1/sqrt(2) into weights."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.film, self.resamples = block.film, block.resample is not None
        self.up = self.resamples and not isinstance(block.resample, Downsample)
        self.norm_0, self.norm_1 = FusedNorm(block.GroupNorm_0), FusedNorm(block.GroupNorm_1)
        self.conv_0, self.conv_1, self.dense = block.Conv_0, block.Conv_1, block.Dense_0
        self.conv_2: nn.Conv2d | None = getattr(block, "Conv_2", None)
        bias_0, bias_1 = _without_bias(self.conv_0), _without_bias(self.conv_1)
        if self.film:
            self.dense.bias.data[: bias_0.numel()] += 1
            self.before = nn.Parameter(bias_0[None, :, None, None], requires_grad=False)
        else:
            self.dense.bias.data += bias_0
        self.conv_1.weight.data *= HALF_POWER
        if self.conv_2 is not None:
            bias_1 = bias_1 + _without_bias(self.conv_2)
            self.conv_2.weight.data *= HALF_POWER
        self.bias = nn.Parameter(bias_1 * HALF_POWER, requires_grad=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """As `ResidualBlock.forward`."""
        h = self.norm_0(x, activate=True)
        if self.resamples:
            h, x = resample(h, self.up), resample(x, self.up)
        condition = self.dense(embedding).transpose(1, 2).unsqueeze(2)  # (B, C' or 2 C', 1, 1 or T')
        h = self.conv_0(h)
        if self.film:
            scale, shift = condition.chunk(2, dim=1)
            h = self.norm_1(h, self.before, scale, shift, activate=True)
        else:
            h = self.norm_1(h, condition, activate=True)
        h = self.conv_1(h)
        if self.conv_2 is not None:
            return residual_sum(h, self.conv_2(x), self.bias, 1.0)
        return residual_sum(h, x, self.bias, HALF_POWER)


class FusedAttention(nn.Module):
    """An `Attention` with query, key and value in one product and 1/sqrt(2) in the weights."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.norm = FusedNorm(attention.GroupNorm_0)
        inputs = attention.NIN_0, attention.NIN_1, attention.NIN_2
        self.weight = nn.Parameter(torch.cat([layer.W.T for layer in inputs]), requires_grad=False)
        self.weight_bias = nn.Parameter(torch.cat([layer.b for layer in inputs]), requires_grad=False)
        self.output = nn.Parameter(attention.NIN_3.W.T * HALF_POWER, requires_grad=False)
        self.bias = nn.Parameter(attention.NIN_3.b * HALF_POWER, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, T) -> (B, C, F, T)."""
        positions = self.norm(x).flatten(2).transpose(1, 2)  # (B, F T, C)
        query, key, value = F.linear(positions, self.weight, self.weight_bias)[:, None].chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        h = F.linear(attended, self.output).transpose(1, 2).reshape(x.shape)
        return residual_sum(h, x, self.bias, HALF_POWER)


def _without_bias(convolution: nn.Conv2d) -> Tensor:
    """Take the bias from a convolution."""
    bias = convolution.bias
    assert bias is not None
    convolution.bias = None
    return bias.data


def fused_ncsnpp(network: NCSNpp) -> NCSNpp:
    """A frozen copy with fused layers; the same function within rounding, another `state_dict`."""
    fused = copy.deepcopy(network).requires_grad_(False)
    for index, module in enumerate(fused.all_modules):
        if isinstance(module, ResidualBlock):
            fused.all_modules[index] = FusedResidualBlock(module)
        elif isinstance(module, Attention):
            fused.all_modules[index] = FusedAttention(module)
        elif isinstance(module, nn.GroupNorm):
            fused.all_modules[index] = FusedNorm(module)
    return fused.eval()


class CapturedGraph(nn.Module):
    """A score graph whose calls on GPUs are replayed from CUDA graphs."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph: Any = graph
        self._calls = Replayed(lambda: addresses(self.graph))

    def forward(self, *inputs: Tensor) -> Tensor:
        """As `ScoreGraph.forward`."""
        return self._called(self.graph.forward, inputs)

    def per_frame(self, *inputs: Tensor) -> Tensor:
        """As `ScoreGraph.per_frame`."""
        return self._called(self.graph.per_frame, inputs)

    def with_deviation(self, state: Tensor, time: Tensor, label: Tensor | None, past: Any) -> tuple[Tensor, Tensor]:
        """As `ScoreGraph.with_deviation`; a network with a memory is called as it is."""

        def call(state: Tensor, time: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
            result: tuple[Tensor, Tensor] = self.graph.with_deviation(state, time, label, past)
            return result

        inputs = (state, time) if label is None else (state, time, label)
        if past is not None or not state.is_cuda:
            return call(*inputs)
        score, deviation = self._calls(call, *inputs, key="with_deviation")
        return score, deviation

    def _called(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        if not inputs[0].is_cuda:
            return function(*inputs)
        result: Tensor = self._calls(lambda *x: (function(*x),), *inputs, key=function.__name__)[0]
        return result


def optimise(network: ScoreNetwork) -> ScoreNetwork:
    """The same score, faster on GPUs: fused layers (NCSN++) and CUDA graphs.

    The first call with a shape takes seconds. Fold before rounding: give the network in float32 and convert
    the result by `.to(precision=...)`.

    Returns:
        a network of its own, on the device and in the precision of `network`.

    Raises:
        UdseError: a TorchScript file, which is what it is.
    """
    if network.scripted:
        raise UdseError(
            "expected a network with weights, got a TorchScript file: optimise the checkpoint it was made of"
        )
    module = network.module
    fused = fused_ncsnpp(module) if isinstance(module, NCSNpp) else copy.deepcopy(module)
    optimised = ScoreNetwork(fused, network.config).to(network.device, network.precision)
    optimised.graph = CapturedGraph(optimised.graph)
    return optimised


def optimised_or_plain(network: ScoreNetwork, precision: str) -> ScoreNetwork:
    """`optimise` for this machine, in `precision`; where that does not work, the plain network and one warning.

    Both are tried on a small spectrogram: kernels that do not compile or launch here (no Triton, no C compiler, an
    old driver) are found now. A TorchScript file is given back as it is.

    Args:
        network: in float32, on the device it is for.
    """
    if network.scripted:
        return network.to(precision=precision)
    bins = network.config["stft"]["n_fft"] // 2 + 1
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(1, bins, TRIAL_FRAMES, dtype=torch.complex64, generator=generator).to(network.device)
    try:
        fast = optimise(network).to(precision=precision)
        with torch.inference_mode():
            expected = network.to(precision=precision).score(state, TRIAL_TIME)
            difference = float((fast.score(state, TRIAL_TIME) - expected).norm() / expected.norm())
        if not difference < TRIAL_TOLERANCE:
            raise UdseError(f"the fused layers differ from the plain ones by {difference:.1e} of the score")
    except Exception as error:  # whatever the reason, the plain network does the same
        warnings.warn(
            f"the network runs without fused layers and CUDA graphs, which is slower: {first_line(error)}",
            RuntimeWarning,
            stacklevel=2,
        )
        return network.to(precision=precision)
    return fast
