"""The networks at the hardware's rate: NCSN++ with fused layers, and calls replayed from CUDA graphs."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.backends.cuda_graphs import Replayed, addresses, nothing_recorded
from udse_fast.backends.dispatch import disable, forced_backend
from udse_fast.errors import UdseError, first_line
from udse_fast.kernels.convolution import Convolution, convolution, switch
from udse_fast.kernels.fused_layers import (
    Norm,
    backend_of,
    measured_sum,
    norm_film_silu,
    resample,
    residual_sum,
    tile_statistics,
)
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.latent_attention import LatentFusion
from udse_fast.networks.ncsnpp import ActivatedNorm, Attention, Downsample, NCSNpp, PyramidInput, ResidualBlock
from udse_fast.networks.ncsnpp_av import AudioVisualNCSNpp, VideoFusion
from udse_fast.networks.past import Past
from udse_fast.networks.score_network import ScoreGraph, ScoreNetwork

HALF_POWER = 1 / math.sqrt(2)
INPUT_MODULE = 3  # of NCSNpp.all_modules, after those of the embedding
TRIAL_ITEMS, TRIAL_FRAMES = 2, 256  # as in a pass: batch strides, and many tiles in a map
EXACT_TOLERANCE = 2e-3  # in float32: of the order of the sums, no more
ROUNDED_TOLERANCE = 0.1  # 16 bits differ by a few hundredths


class Measured(NamedTuple):
    """A map on its way through the network, and what its norms need of it, which who wrote the map knew already."""

    values: Tensor
    """(B, C, F, T)."""
    statistics: Tensor | None = None
    """See `udse_fast.kernels.fused_layers`; None: not known."""


class FusedNorm(nn.Module):
    """A group norm with what stands around it in one pass: SiLU(norm(x + before) * scale + shift)."""

    def __init__(self, norm: nn.GroupNorm, activate: bool = True) -> None:
        super().__init__()
        self.weight, self.bias, self.groups, self.activate = norm.weight, norm.bias, norm.num_groups, activate

    def of(
        self,
        x: Measured,
        before: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        skip: Measured | None = None,
    ) -> Norm:
        """(B, C, F, T), or C channels of two maps, and conditions (B, C, 1, 1 or T); for what does it on the way."""
        other, of_other = (None, None) if skip is None else skip
        parameters = self.weight, self.bias, self.groups, before, scale, shift, self.activate
        return Norm(x.values, *parameters, other, (x.statistics, of_other))

    def forward(self, x: Measured) -> Tensor:
        """(B, C, F, T) -> (B, C, F, T)."""
        return norm_film_silu(self.of(x))


class FusedInput(nn.Module):
    """The first convolution; two norms read what it gives."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Measured:
        """(B, 2, F, T) -> (B, C, F, T)."""
        h = self.convolution(x)
        return Measured(h, tile_statistics(h))


class FusedPyramidInput(nn.Module):
    """A `PyramidInput` whose bias is added with the map."""

    def __init__(self, module: PyramidInput) -> None:
        super().__init__()
        self.convolution = module.Conv_0
        self.bias = nn.Parameter(_without_bias(self.convolution), requires_grad=False)

    def forward(self, pyramid: Tensor, h: Measured) -> Measured:
        """(B, 2, F, T), (B, C, F, T) -> (B, C, F, T)."""
        return Measured(*measured_sum(self.convolution(pyramid), h.values, self.bias, 1.0))


class FusedResidualBlock(nn.Module):
    """A `ResidualBlock` with biases folded into norms and sum, 1 + scale and 1/sqrt(2) into weights.

    Args:
        measures: the sum is read by a norm.
    """

    def __init__(self, block: ResidualBlock, measures: bool = True) -> None:
        super().__init__()
        self.film, self.resamples, self.measures = block.film, block.resample is not None, measures
        self.up = self.resamples and not isinstance(block.resample, Downsample)
        self.norm_0, self.norm_1 = FusedNorm(block.GroupNorm_0), FusedNorm(block.GroupNorm_1)
        self.conv_0, self.conv_1, self.dense = block.Conv_0, block.Conv_1, block.Dense_0
        shortcut = block.Conv_2 if block.has_shortcut else None
        bias_0, bias_1 = _without_bias(self.conv_0), _without_bias(self.conv_1)
        if self.film:
            self.dense.bias.data[: bias_0.numel()] += 1
            self.before = nn.Parameter(bias_0[None, :, None, None], requires_grad=False)
        else:
            self.dense.bias.data += bias_0
        self.conv_1.weight.data *= HALF_POWER
        self.shortcut: nn.Parameter | None = None
        if shortcut is not None:
            bias_1 = bias_1 + _without_bias(shortcut)
            self.shortcut = nn.Parameter(shortcut.weight[:, :, 0, 0] * HALF_POWER, requires_grad=False)
        self.bias = nn.Parameter(bias_1 * HALF_POWER, requires_grad=False)

    def forward(self, x: Measured, embedding: Tensor, skip: Measured | None = None) -> Measured:
        """As `ResidualBlock.forward`; the channels of x and of `skip` are never written side by side."""
        norm = self.norm_0.of(x, skip=skip)
        h: Norm | Tensor = norm
        added = (x.values,) if skip is None else (x.values, skip.values)
        if self.resamples:
            h, added = resample(norm_film_silu(norm), self.up), (resample(x.values, self.up),)
        condition = self.dense(embedding).transpose(1, 2).unsqueeze(2)  # (B, C' or 2 C', 1, 1 or T')
        between = Measured(*convolution(Convolution(h, self.conv_0.weight, measured=True)))
        if self.film:
            scale, shift = condition.chunk(2, dim=1)
            norm = self.norm_1.of(between, self.before, scale, shift)
        else:
            norm = self.norm_1.of(between, condition)
        factor = HALF_POWER if self.shortcut is None else 1.0
        weights = self.conv_1.weight, self.bias, added, self.shortcut
        return Measured(*convolution(Convolution(norm, *weights, factor, self.measures)))


class FusedAttention(nn.Module):
    """An `Attention` with query, key and value in one product and 1/sqrt(2) in the weights."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.norm = FusedNorm(attention.GroupNorm_0, activate=False)
        inputs = attention.NIN_0, attention.NIN_1, attention.NIN_2
        self.weight = nn.Parameter(torch.cat([layer.W.T for layer in inputs]), requires_grad=False)
        self.weight_bias = nn.Parameter(torch.cat([layer.b for layer in inputs]), requires_grad=False)
        self.output = nn.Parameter(attention.NIN_3.W.T * HALF_POWER, requires_grad=False)
        self.bias = nn.Parameter(attention.NIN_3.b * HALF_POWER, requires_grad=False)

    def forward(self, x: Measured) -> Measured:
        """(B, C, F, T) -> (B, C, F, T)."""
        positions = self.norm(x).flatten(2).transpose(1, 2)  # (B, F T, C)
        query, key, value = F.linear(positions, self.weight, self.weight_bias)[:, None].chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        h = F.linear(attended, self.output).transpose(1, 2).reshape(x.values.shape)
        return Measured(*measured_sum(h, x.values, self.bias, HALF_POWER))


class FusedVideoFusion(nn.Module):
    """A `VideoFusion` that adds and measures in one pass.

    Args:
        measures: the sum is read by a norm.
    """

    def __init__(self, fusion: VideoFusion, measures: bool = True) -> None:
        super().__init__()
        self.cross_attention, self.measures = fusion.cross_attention, measures
        self.norm = FusedNorm(fusion.groupnorm, activate=False)
        self.bias = nn.Parameter(torch.zeros_like(fusion.groupnorm.bias), requires_grad=False)

    def forward(self, x: Measured, conditions: Conditions) -> Measured:
        """(B, C, F, T) -> (B, C, F, T)."""
        assert conditions.video is not None
        seen = self.cross_attention(x.values, conditions.video).contiguous(memory_format=torch.channels_last)
        h = self.norm(Measured(seen))
        if self.measures:
            return Measured(*measured_sum(h, x.values, self.bias, 1.0))
        return Measured(residual_sum(h, x.values, self.bias, 1.0))


class FusedLatentFusion(nn.Module):
    """A `LatentFusion` that adds and measures in one pass."""

    def __init__(self, fusion: LatentFusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.bias = nn.Parameter(torch.zeros_like(fusion.norm.bias), requires_grad=False)

    def forward(self, x: Measured, conditions: Conditions) -> Measured:
        """(B, C, F, T) -> (B, C, F, T)."""
        seen = (self.fusion.seen(x.values, conditions) * HALF_POWER).contiguous(memory_format=torch.channels_last)
        return Measured(*measured_sum(seen, x.values, self.bias, HALF_POWER))


def _without_bias(convolution: nn.Conv2d) -> Tensor:
    """Take the bias from a convolution."""
    bias = convolution.bias
    assert bias is not None
    convolution.bias = None
    return bias.data


def fused_ncsnpp(network: NCSNpp) -> NCSNpp:
    """A frozen copy with fused layers; the same function within rounding, another `state_dict`."""
    fused = copy.deepcopy(network).requires_grad_(False)
    if isinstance(fused, AudioVisualNCSNpp):
        fused.feature_extractor = None  # features are made by that of the plain network
    modules = list(fused.all_modules)
    modules[INPUT_MODULE] = FusedInput(modules[INPUT_MODULE])  # type: ignore[arg-type]
    for index, module in enumerate(modules):
        if isinstance(module, ResidualBlock):
            unread = isinstance(modules[index + 1], (PyramidInput, VideoFusion))
            modules[index] = FusedResidualBlock(module, measures=not unread)
        elif isinstance(module, Attention):
            modules[index] = FusedAttention(module)
        elif isinstance(module, LatentFusion):
            modules[index] = FusedLatentFusion(module)
        elif isinstance(module, VideoFusion):
            modules[index] = FusedVideoFusion(module, measures=not isinstance(modules[index + 1], PyramidInput))
        elif isinstance(module, PyramidInput):
            modules[index] = FusedPyramidInput(module)
        elif isinstance(module, ActivatedNorm):
            modules[index] = FusedNorm(module)
    fused.all_modules = nn.ModuleList(modules)
    return fused.eval()


class CapturedGraph(nn.Module):
    """A score graph whose calls on GPUs are replayed from CUDA graphs.

    States are padded before: all lengths that the network pads to the same one share a recording, and what cuDNN
    measured.
    """

    def __init__(self, graph: ScoreGraph) -> None:
        super().__init__()
        self.graph = graph
        self._calls = Replayed(lambda: addresses(self.graph))

    def forward(self, *inputs: Tensor) -> Tensor:
        """As `ScoreGraph.forward`."""
        result: Tensor = self._called(self.graph.forward, self.graph.padded(*inputs))
        return result[..., : inputs[0].shape[-1]]

    def per_frame(self, *inputs: Tensor) -> Tensor:
        """As `ScoreGraph.per_frame`."""
        result: Tensor = self._called(self.graph.per_frame, self.graph.padded(*inputs))
        return result[..., : inputs[0].shape[-1]]

    def posterior(self, *inputs: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """As `ScoreGraph.posterior`."""
        result: tuple[Tensor, Tensor] = self._called(self.graph.posterior, inputs, past)
        return result

    def posterior_per_frame(self, *inputs: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """As `ScoreGraph.posterior_per_frame`."""
        result: tuple[Tensor, Tensor] = self._called(self.graph.posterior_per_frame, inputs, past)
        return result

    def _called(self, function: Callable[..., Any], inputs: tuple[Tensor, ...], past: Past | None = None) -> Any:
        if past is not None:  # a network with a memory is called as it is
            return function(*inputs, past=past)
        if not self._replayed_on(inputs[0].device):
            return function(*inputs)

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            result = function(*inputs)
            return result if isinstance(result, tuple) else (result,)

        results = self._calls(call, *inputs, key=function.__name__)
        return results if len(results) > 1 else results[0]

    @staticmethod
    def _replayed_on(device: torch.device) -> bool:
        return device.type == "cuda"


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
    optimised = ScoreNetwork(copy.deepcopy(network.module), network.config).to(network.device, network.precision)
    fast = optimised.plain
    if isinstance(optimised.module, NCSNpp):
        fast = ScoreGraph(fused_ncsnpp(optimised.module), optimised.sde)
    optimised.graph = CapturedGraph(fast)
    return optimised


def optimised_or_plain(network: ScoreNetwork, precision: str) -> ScoreNetwork:
    """`optimise` for this machine, in `precision`; where that does not work, the plain network and one warning.

    Both are tried on a spectrogram, in float32, where they must agree closely, then in `precision`: kernels that do
    not compile or launch here (no Triton, no C compiler, an old driver) are found now. Triton kernels that fail are
    given up for all operations, and the CUDA ones tried. What worked once for an architecture on a device is not tried
    again in this process. A TorchScript file is given back as it is.

    Args:
        network: in float32, on the device it is for.

    Raises:
        UdseError: UDSE_CONVOLUTION is wrong.
    """
    switch()  # what is wrong there is no reason to go without fused layers
    if network.scripted:
        return network.to(precision=precision)
    fast: ScoreNetwork | None = None
    while True:
        backend = backend_of(network.device)
        try:
            fast = fast or optimise(network)
            if fast.precision == "float32":
                _try_out_once(fast, network, EXACT_TOLERANCE, backend)
            if precision != "float32":
                fast, network = (each.to(precision=precision) for each in (fast, network))
                _try_out_once(fast, network, ROUNDED_TOLERANCE, backend)
            return fast
        except Exception as error:  # whatever the reason, the plain network does the same
            reason = first_line(error)
        if backend == "triton" and forced_backend() is None:
            disable("triton", f"its kernels do not work here: {reason}")
            if backend_of(network.device) == "cuda":
                continue
        warnings.warn(
            f"the network runs without fused layers and CUDA graphs, which is slower: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return network.to(precision=precision)


_worked: set[tuple[Any, ...]] = set()
"""Backend, device, precision and architecture of what was tried and worked."""


def _try_out_once(fast: ScoreNetwork, plain: ScoreNetwork, tolerance: float, backend: str) -> None:
    trial = backend, str(plain.device), plain.precision, repr(plain.config["architecture"])
    if trial not in _worked:
        _try_out(fast, plain, tolerance)
        _worked.add(trial)


def _try_out(fast: ScoreNetwork, plain: ScoreNetwork, tolerance: float) -> None:
    """Both on a spectrogram, of a shape that is not used again: nothing is recorded or measured for it.

    Raises:
        UdseError: they differ; or whatever does not work.
    """
    bins = plain.config["stft"]["n_fft"] // 2 + 1
    inputs = [x.to(plain.device) for x in plain.module.example(TRIAL_ITEMS, bins, TRIAL_FRAMES)]
    with torch.inference_mode(), nothing_recorded(), _full_float32():
        expected = plain.graph(*inputs)
        difference = float((fast.graph(*inputs) - expected).norm() / expected.norm())
    if not difference < tolerance:
        raise UdseError(f"the fused layers differ from the plain ones by {difference:.1e} of the score")


@contextmanager
def _full_float32() -> Iterator[None]:
    """cuDNN's convolutions of float32 without TF32, whose 10 bits would hide what is to be seen."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
