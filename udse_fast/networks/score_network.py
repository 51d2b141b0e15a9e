"""A trained network with its configuration, as a score function on complex spectrograms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.backends.dispatch import wanted
from udse_fast.checks import Range, described, real_number, whole_number
from udse_fast.devices import usable_device
from udse_fast.errors import UdseError
from udse_fast.networks.causal_core import CausalCore, Memory
from udse_fast.networks.compact import Past
from udse_fast.sampling.sde import OUVE

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ScoreGraph(nn.Module):
    """The score on real tensors: what is exported. Pads the frames as the network needs and cuts them again.

    The module is a noise predictor (`forward(state, time, label)`, NCSN++), whose score is -noise / sigma(t),
    or a denoiser (`denoise(u, a, label)` of the unit-gain state u = s / delta at the noise level a = sigma /
    delta), whose score is (delta D(u, a) - s) / sigma^2 by Tweedie's formula.
    """

    def __init__(self, module: nn.Module, sde: OUVE) -> None:
        super().__init__()
        self.module: Any = module
        self.sde = sde
        self.denoises = hasattr(module, "denoise")
        self.frame_multiple: int = getattr(module, "frame_multiple", 1)

    def forward(self, state: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, 2, F, T), one time per item (B,), (B,) int for joint networks -> (B, 2, F, T) float32."""
        frames = state.shape[-1]
        state = F.pad(state, (0, -frames % self.frame_multiple))
        return self._score(state, time, time[:, None, None, None], label)[..., :frames]

    def per_frame(self, state: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The same with one time per frame, (B, T)."""
        frames = state.shape[-1]
        padding = (0, -frames % self.frame_multiple)
        state, time = F.pad(state, padding), F.pad(time, padding, mode="replicate")
        return self._score(state, time, time[:, None, None, :], label)[..., :frames]

    def _score(self, state: Tensor, time: Tensor, time_per_bin: Tensor, label: Tensor | None) -> Tensor:
        sigma = self.sde.sigma(time_per_bin)
        if not self.denoises:
            return -self.module(state, time, label) / sigma
        delta = self.sde.delta(time_per_bin)
        clean = self.module.denoise(state / delta, self.sde.noise_level(time), label)
        return (delta * clean - state) / sigma**2

    def posterior(
        self, state: Tensor, time: Tensor, label: Tensor | None = None, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """The score, and E|s_0 - s0_hat|^2 (B, F, T), of a denoiser that tells it."""
        return self._posterior(state, time, time[:, None, None, None], label, past)

    def posterior_per_frame(
        self, state: Tensor, time: Tensor, label: Tensor | None = None, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same with one time per frame, (B, T)."""
        return self._posterior(state, time, time[:, None, None, :], label, past)

    def _posterior(
        self, state: Tensor, time: Tensor, time_per_bin: Tensor, label: Tensor | None, past: Past | None
    ) -> tuple[Tensor, Tensor]:
        sigma, delta = self.sde.sigma(time_per_bin), self.sde.delta(time_per_bin)
        clean, posterior_variance = self.module.posterior(state / delta, self.sde.noise_level(time), label, past)
        return (delta * clean - state) / sigma**2, posterior_variance


class ScoreNetwork:
    """What `load_network` returns: a score function with its configuration, device and precision.

    Args:
        module: an NCSN++, a denoiser, or an exported TorchScript graph; it is frozen, in eval mode.
        config: {"architecture", "sde", "stft", "compression", "training", ...}, see `udse_fast.checkpoints.checkpoint`.
    """

    def __init__(self, module: nn.Module, config: dict[str, Any]) -> None:
        self.config = config
        self.joint: bool = bool(config["architecture"].get("joint", False))
        self.scripted = isinstance(module, torch.jit.ScriptModule)
        self.sde = OUVE(**{name: config["sde"][name] for name in OUVE().config})
        self.module = module
        self.frame_multiple: int = getattr(module, "frame_multiple", 1)
        self.graph: Any = module if self.scripted else ScoreGraph(module, self.sde)
        self.has_posterior_variance: bool = hasattr(module, "posterior")
        self.causal_block: int = getattr(module, "causal_block", 0)
        self.graph.eval()
        for parameter in self.graph.parameters():
            parameter.requires_grad = False
        self.device = torch.device("cpu")
        self.precision: str = config.get("precision", "float32") if self.scripted else "float32"
        self.to("cpu", self.precision)

    def to(self, device: str | torch.device | None = None, precision: str | None = None) -> ScoreNetwork:
        """Move and convert the network in place; `precision` is "float32", "bfloat16" or "float16".

        What rounding to 16 bits takes from the weights does not come back with "float32".

        Raises:
            UdseError: no such device or precision, or another precision than that of a TorchScript file.
        """
        precision = precision or self.precision
        if precision not in PRECISIONS:
            raise UdseError(f"expected the precision {', '.join(PRECISIONS)}, got {precision!r}")
        if self.scripted and precision != self.precision:
            raise UdseError(
                f"expected the precision {self.precision}, in which this TorchScript file was exported, got "
                f"{precision}: export it anew"
            )
        self.device = usable_device(device if device is not None else self.device)
        self.precision = precision
        self._causal_core: CausalCore | None = None
        if self.scripted:
            self.graph.to(self.device)
            return self
        for module in self.graph.modules():
            dtype = torch.float32 if getattr(module, "keep_float32", False) else PRECISIONS[precision]
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)
        self.graph.to(memory_format=torch.channels_last)
        return self

    def score(self, state: Tensor, time: Tensor | float, label: Tensor | int | None = None) -> Tensor:
        """The gradient of the log density of the diffused spectrogram, S(s_t, t).

        Args:
            state: (B, F, T) complex; any number of frames.
            time: diffusion time in (0, 1]: one, one per item (B,), or one per frame (B, T).
            label: (B,) int or one for all, 1 speech, 0 noise; None is speech. Only joint networks read it.

        Returns:
            (B, F, T) complex, in the precision and on the device of `state`.

        Raises:
            UdseError: shapes that do not fit each other or the network.
        """
        inputs = self._inputs(state, time, label)
        score = self.graph(*inputs) if inputs[1].ndim == 1 else self.graph.per_frame(*inputs)
        return _as_complex(score, state)

    def with_posterior_variance(
        self, state: Tensor, time: Tensor | float, label: Tensor | int | None = None, past: Past | Memory | None = None
    ) -> tuple[Tensor, Tensor]:
        """`score`, and what is uncertain about the clean spectrogram, E|s_0 - E[s_0 | s_t]|^2 (B, F, T) real.

        Only where `has_posterior_variance`. `past`: of a causal network, what it saw before (`new_past`); updated.
        """
        if isinstance(past, Memory):
            return self._of_causal_core(state, time, label, past)
        inputs = self._inputs(state, time, label)
        posterior = self.graph.posterior if inputs[1].ndim == 1 else self.graph.posterior_per_frame
        score, posterior_variance = posterior(*inputs) if past is None else posterior(*inputs, past=past)
        return _as_complex(score, state), posterior_variance.contiguous().to(state.device, state.real.dtype)

    def _of_causal_core(
        self, state: Tensor, time: Tensor | float, label: Tensor | int | None, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """`with_posterior_variance` of a few frames, whose arithmetic is less than the calls that ask for it."""
        core, sde = self._causal_core, self.sde
        assert core is not None
        core.threads = torch.get_num_threads()
        if isinstance(time, Tensor) and time.ndim:
            time = time[:, None, None]  # one per item
        if not self.joint:
            label = None
        elif isinstance(label, int):
            label = torch.full((len(state),), label)
        delta, sigma, level = sde.delta(time), sde.sigma(time), sde.noise_level(time)
        level = level.flatten() if isinstance(level, Tensor) else level
        clean, posterior_variance = core.posterior(state * (1 / delta), level, label, memory)
        precision = 1 / sigma**2  # the division of complex numbers is slow
        return clean * (delta * precision) - state * precision, posterior_variance.to(state.real.dtype)

    def new_past(self) -> Past | Memory:
        """For the first block of a stream: of the C++ core on CPUs, of torch elsewhere."""
        if self.device.type != "cpu" or not wanted("cpp"):
            return Past()
        if self._causal_core is None:
            self._causal_core = CausalCore(self.module)  # type: ignore[arg-type]  # it is causal: a Compact
        return Memory()

    def _inputs(self, state: Tensor, time: Tensor | float, label: Tensor | int | None) -> list[Tensor]:
        """State (B, 2, F, T), time (B,) or (B, T), and for a joint network the label (B,), on the network's device."""
        bins = self.config["stft"]["n_fft"] // 2 + 1
        fits = isinstance(state, Tensor) and state.ndim == 3 and state.is_complex() and state.shape[1] == bins
        if not fits or state.numel() == 0:
            raise UdseError(
                f"expected a complex state of the shape (B, {bins}, T), got {described(state)}: make the "
                "spectrogram with the network's own settings (config['stft'])"
            )
        batch, _, frames = state.shape
        if not isinstance(time, Tensor):
            time = torch.full((batch,), real_number("time", time, Range(0, 1, excluded=True)), device=self.device)
        time = time.expand(batch) if time.ndim == 0 else time
        if time.shape not in ((batch,), (batch, frames)):
            raise UdseError(
                f"expected one time, one per item ({batch},) or one per frame ({batch}, {frames}), "
                f"got {tuple(time.shape)}"
            )
        real_state = torch.view_as_real(state).movedim(-1, 1)
        inputs = [real_state.to(self.device, torch.float32), time.to(self.device, torch.float32)]
        if self.joint:
            label = 1 if label is None else label
            if not isinstance(label, Tensor):
                label = torch.full((batch,), whole_number("label", label, Range(0, 1)), device=self.device)
            if label.shape != (batch,):
                raise UdseError(f"expected one label or one per item ({batch},), got {tuple(label.shape)}")
            inputs.append(label.to(self.device, torch.long))
        return inputs


def _as_complex(score: Tensor, like: Tensor) -> Tensor:
    """(B, 2, F, T) real -> (B, F, T) complex, on the device and in the precision of `like`."""
    return torch.view_as_complex(score.movedim(1, -1).contiguous()).to(like.device, like.dtype)
