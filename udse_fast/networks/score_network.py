"""A trained network with its configuration, as a score function on complex spectrograms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.backends.dispatch import wanted
from udse_fast.checks import Range, described, real_number, whole_number
from udse_fast.devices import usable_device
from udse_fast.errors import UdseError
from udse_fast.networks.base import Float32, Network, to_channels_last
from udse_fast.networks.compact import Compact
from udse_fast.networks.compact_core import CompactCore
from udse_fast.networks.compact_posterior import CompactPosterior
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.estimate import Estimate, Said
from udse_fast.networks.past import CorePast, LayerPast, Past
from udse_fast.networks.side_by_side import side_by_side
from udse_fast.networks.visual_encoder import VisualEncoder
from udse_fast.sampling.sde import SDE, Time, make_sde

KINDS = {
    "prior": "a prior",
    "posterior": "a posterior network (udse-fast train --network compact-posterior)",
    "conditional": "a conditional network, trained on pairs",
    "tagged": "a conditional network that is told the latent of a tagger",
}
"""Of networks: what they know is what a sampler asks for."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

FRAMES_APART = 32
"""From which on the items of a batch are worth calls of their own: half a second."""


class ScoreGraph(nn.Module):
    """The score on real tensors: what is exported. Pads the frames as the network needs and cuts them again.

    Every method takes the conditions that the network knows (`Network.conditions`) after the time, in that order, as
    `Conditions.for_network` makes them.
    """

    def __init__(self, module: Network, sde: SDE) -> None:
        super().__init__()
        self.module = module
        self.sde = sde

    def padded(self, state: Tensor, time: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        """Arguments of `forward` or `per_frame` with as many frames as the network needs."""
        missing = -state.shape[-1] % self.module.frame_multiple
        if not missing:
            return state, time, *conditions
        time = F.pad(time, (0, missing), mode="replicate") if time.ndim == 2 else time
        return F.pad(state, (0, missing)), time, *self._told(conditions).padded(missing).tensors

    def forward(self, state: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
        """(B, 2, F, T), one time per item (B,), conditions -> the score, (B, 2, F, T) float32."""
        frames = state.shape[-1]
        state, told = self._padded(state, conditions)
        return self._score(state, time, time[:, None, None, None], told)[..., :frames]

    def per_frame(self, state: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
        """The same with one time per frame, (B, T)."""
        frames = state.shape[-1]
        state, told = self._padded(state, conditions)
        time = F.pad(time, (0, state.shape[-1] - frames), mode="replicate")
        return self._score(state, time, time[:, None, None, :], told)[..., :frames]

    def posterior(
        self, state: Tensor, time: Tensor, *conditions: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """The score, and E|s_0 - s0_hat|^2 (B, F, T), of a network that tells it."""
        return self._posterior(state, time, time[:, None, None, None], conditions, past)

    def posterior_per_frame(
        self, state: Tensor, time: Tensor, *conditions: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same with one time per frame, (B, T)."""
        return self._posterior(state, time, time[:, None, None, :], conditions, past)

    def _told(self, conditions: Sequence[Tensor]) -> Conditions:
        return self.module.conditions_of(conditions) if conditions else NOTHING

    def _padded(self, state: Tensor, conditions: Sequence[Tensor]) -> tuple[Tensor, Conditions]:
        missing = -state.shape[-1] % self.module.frame_multiple
        return F.pad(state, (0, missing)), self._told(conditions).padded(missing)

    def _score(self, state: Tensor, time: Tensor, time_per_bin: Tensor, conditions: Conditions) -> Tensor:
        if self.module.predicts == "score":
            return self.module.predict_score(state, time, self.sde, conditions)
        sigma = self.sde.sigma(time_per_bin)
        if self.module.predicts == "noise":
            return -self.module.predict_noise(state, time, conditions) / sigma
        delta = self.sde.delta(time_per_bin)
        state = self._without_drift(state, delta, conditions)
        clean = self.module.denoise(state / delta, self._level(time), conditions)
        return (delta * clean - state) / sigma**2

    def _posterior(
        self, state: Tensor, time: Tensor, time_per_bin: Tensor, conditions: Sequence[Tensor], past: Past | None
    ) -> tuple[Tensor, Tensor]:
        sigma, delta = self.sde.sigma(time_per_bin), self.sde.delta(time_per_bin)
        told = self._told(conditions)
        state = self._without_drift(state, delta, told)
        clean, variance = self.module.posterior(state / delta, self._level(time), told, past)
        return (delta * clean - state) / sigma**2, variance

    def _without_drift(self, state: Tensor, delta: Time, conditions: Conditions) -> Tensor:
        """delta x_0 + sigma z: of a diffusion that drifts to the recording, x_t - (1 - delta) y."""
        if not self.module.drifts:
            return state
        assert conditions.noisy is not None
        return state - (1 - delta) * conditions.noisy

    def _level(self, time: Tensor) -> Tensor:
        return torch.as_tensor(self.sde.noise_level(time))


class ScoreNetwork:
    """What `load_network` returns: a score function with its configuration, device and precision.

    Args:
        module: the architecture with its weights, which are frozen, in eval mode.
        config: {"architecture", "sde", "stft", "compression", "training", ...}, see `udse_fast.checkpoints.checkpoint`.
        script: a TorchScript graph in the place of the module's weights; `config["methods"]` are those that it has.

    Attributes:
        conditions: names of the `Conditions` that it reads.
        kind: what it was trained for, see `KINDS`.
        tells_noise_variance: whether it is a posterior network, see `say`.
        has_posterior_variance: whether it tells how far off its estimates are expected to be.
        causal_block: frames of a block of a causal network, else 0.
        graph: what computes; `optimise` puts a faster one here.
        plain: the graph in torch's own operations, which can be differentiated.
    """

    def __init__(self, module: Network, config: dict[str, Any], script: torch.jit.ScriptModule | None = None) -> None:
        self.config = config
        self.module = module
        self.sde = make_sde(config["sde"])
        self.scripted = script is not None
        self.conditions = module.conditions
        self.joint = "label" in self.conditions
        self.frame_multiple, self.causal_block = module.frame_multiple, module.causal_block
        self.kind = _kind(module)
        self.tells_noise_variance = module.tells_noise_variance and script is None
        self.has_posterior_variance = module.has_posterior_variance and (
            script is None or "posterior" in config.get("methods", ())
        )
        self.plain: Any = ScoreGraph(module, self.sde) if script is None else script
        self.graph: Any = self.plain
        self.plain.eval()
        for parameter in self.plain.parameters():
            parameter.requires_grad = False
        self.device = torch.device("cpu")
        self.precision: str = config.get("precision", "float32") if self.scripted else "float32"
        self.to("cpu", self.precision)

    @property
    def visual_encoder(self) -> VisualEncoder | None:
        """From mouth crops to the features that an audio-visual network is told, where the checkpoint has it."""
        return None if self.scripted else self.module.visual_encoder

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
        self._core: CompactCore | None = None
        if self.scripted:
            self.graph.to(self.device)
            return self
        for graph in {self.graph, self.plain}:
            modules: list[nn.Module] = list(graph.modules())
            exact = {part for module in modules if isinstance(module, Float32) for part in module.modules()}
            for module in modules:
                dtype = torch.float32 if module in exact else PRECISIONS[precision]
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    tensor.data = tensor.data.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)
            to_channels_last(graph)
        return self

    def score(
        self,
        state: Tensor,
        time: Tensor | float,
        label: Tensor | int | None = None,
        *,
        noisy: Tensor | None = None,
        video: Tensor | None = None,
        latent: Tensor | None = None,
        noise_variance: Tensor | None = None,
    ) -> Tensor:
        """The gradient of the log density of the diffused spectrogram, S(s_t, t).

        Args:
            state: (B, F, T) complex; any number of frames.
            time: diffusion time, in (0, 1] for an OUVE: one, one per item (B,), or one per frame (B, T).
            label: (B,) int or one for all, 1 speech, 0 noise; None is speech. Only joint networks read it.
            noisy, video, latent, noise_variance: see `Conditions`.

        Returns:
            (B, F, T) complex, in the precision and on the device of `state`.

        Raises:
            UdseError: shapes that do not fit each other or the network, a condition that the network does not know,
                or lacks.
        """
        if not self.joint:
            label = None
        elif isinstance(label, int):
            label = torch.tensor([whole_number("label", label, Range(0, 1))])
        given = Conditions(label, noisy, video, latent, noise_variance)
        return self.evaluate(state, time, given)[0]

    def evaluate(
        self,
        state: Tensor,
        time: Tensor | float,
        conditions: Conditions = NOTHING,
        *,
        posterior_variance: bool = False,
        past: Past | None = None,
        plain: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`score`, and what is uncertain about the clean spectrogram, E|s_0 - E[s_0 | s_t]|^2 (B, F, T) real.

        Args:
            state, time: see `score`.
            conditions: see `Conditions`.
            posterior_variance: whether to tell it; only where `has_posterior_variance`.
            past: of a causal network, what it saw before (`new_past`); updated, and the variance is told.
            plain: by the graph that can be differentiated.
        """
        if isinstance(past, CorePast):
            return self._of_core(state, time, conditions, past)
        inputs = self._inputs(state, time, conditions)
        graph, per_frame = self.plain if plain else self.graph, inputs[1].ndim == 2
        in_torch = past is not None or plain or per_frame or self.tells_noise_variance
        if self.in_core and not in_torch and not _differentiated(state):
            said = self._of_core(state, inputs[1].to(state.real.dtype), conditions)
            return said if posterior_variance else (said[0], None)
        call: Callable[..., Any]
        if not posterior_variance and past is None:
            call = graph.per_frame if per_frame else graph
        else:
            posterior = graph.posterior_per_frame if per_frame else graph.posterior
            call = posterior if past is None else partial(posterior, past=past)
        apart = past is None and not plain and self._apart(state)
        answer = self._of_items(call, inputs) if apart else call(*inputs)
        if isinstance(answer, Tensor):
            return _as_complex(answer, state), None
        score, variance = answer
        return _as_complex(score, state), variance.contiguous().to(state.device, state.real.dtype)

    def _apart(self, state: Tensor) -> bool:
        """Whether torch is told items in calls of their own, see `side_by_side`.

        It does not depend on the number of threads: what rounding does to an item of a batch is the same everywhere.
        """
        return state.shape[-1] >= FRAMES_APART and self.device.type == "cpu" and self.graph is self.plain

    def _of_items(self, call: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """call(*inputs), a tensor or a tuple of them, item by item of the batch."""
        batch = max(len(x) for x in inputs)
        if batch == 1:
            return call(*inputs)
        inputs = [x.expand(batch, *x.shape[1:]) for x in inputs]
        answers = side_by_side(lambda item: call(*(x[item : item + 1] for x in inputs)), batch)
        if isinstance(answers[0], Tensor):
            return torch.cat(answers)
        return tuple(torch.cat(parts) for parts in zip(*answers, strict=True))

    @property
    def in_core(self) -> bool:
        """Whether the C++ core makes its calls about whole signals: on CPUs, in float32."""
        computes = self.device.type == "cpu" and self.precision == "float32" and self.graph is self.plain
        return computes and self.module.has_core and not self.causal_block and not self.scripted and wanted("cpp")

    def _of_core(
        self, state: Tensor, time: Tensor | float, conditions: Conditions, past: CorePast | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score and variance by the C++ core."""
        core, sde = self.core(), self.sde
        if isinstance(time, Tensor) and time.ndim:
            time = time[:, None, None]  # one per item
        label = None
        if self.conditions or conditions.given:
            (label,) = self.module.completed(conditions, len(state)).for_network(self.conditions, state, self.device)
        delta, sigma, level = sde.delta(time), sde.sigma(time), sde.noise_level(time)
        level = level.flatten() if isinstance(level, Tensor) else level
        clean, variance = core.posterior(state * (1 / delta), level, label, past)
        precision = 1 / sigma**2  # the division of complex numbers is slow
        return clean * (delta * precision) - state * precision, variance.to(state.real.dtype)

    def say(
        self, state: Tensor, noise_level: Tensor | float, conditions: Conditions, past: Past | None = None
    ) -> Estimate:
        """What a posterior network says about a recording.

        Args:
            state: u = s + a z, (B, F, T) complex.
            noise_level: its a, one number, (B,) or per frame (B, T); where it is above `HIGHEST_LEVEL`, the state does
                not matter.
            conditions: the recording and a guess of its noise variance.
            past: of a causal network, see `evaluate`.

        Raises:
            UdseError: another kind of network; conditions that do not fit.
        """
        if not self.tells_noise_variance:
            name = self.config["architecture"].get("name", "of this file")
            raise UdseError(f"expected a posterior network (train --network compact-posterior), got the network {name}")
        mixture, variance = conditions.for_network(self.conditions, state, self.device)
        planes = torch.view_as_real(state).movedim(-1, 1).to(self.device, torch.float32)
        if not isinstance(noise_level, Tensor):
            level = torch.full((len(state),), noise_level, dtype=torch.float32, device=self.device)
        else:
            level = noise_level.to(self.device, torch.float32)
            level = level.expand(len(state)) if level.ndim == 0 else level
        if isinstance(past, CorePast):
            return self._said_by_core(mixture, variance, planes, level, past).for_states(state)
        if self.in_core and past is None and not _differentiated(state, mixture, variance):
            return self._said_by_core(mixture, variance, planes, level).for_states(state)
        if past is None and self._apart(state):
            said = Said(*self._of_items(self.module.say, [mixture, variance, planes, level]))
            return Estimate.of(said, state)
        return Estimate.of(self.module.say(mixture, variance, planes, level, past), state)

    def _said_by_core(
        self, mixture: Tensor, variance: Tensor, planes: Tensor, level: Tensor, past: CorePast | None = None
    ) -> Estimate:
        """`say` by the C++ core; arguments as of `CompactPosterior.say`."""
        assert isinstance(self.module, CompactPosterior)
        u, given, _ = self.module.observed(mixture, variance, planes, level)
        return self.core().say(torch.view_as_complex(u).transpose(1, 2), given.transpose(1, 2), past)

    def new_past(self) -> Past:
        """For the first block of a stream: of the C++ core on CPUs, where there is one, else of torch."""
        if self.device.type != "cpu" or not self.module.has_core or not wanted("cpp"):
            return LayerPast()
        return CorePast()

    def core(self) -> CompactCore:
        """The network in the C++ core, made when it is first asked for, with as many threads as torch has now."""
        if self._core is None:
            assert isinstance(self.module, Compact)
            self._core = CompactCore(self.module)
        self._core.threads = torch.get_num_threads()
        return self._core

    def _inputs(self, state: Tensor, time: Tensor | float, conditions: Conditions) -> list[Tensor]:
        """State (B, 2, F, T), time (B,) or (B, T), and the conditions that it reads, on the network's device."""
        bins = self.config["stft"]["n_fft"] // 2 + 1
        fits = isinstance(state, Tensor) and state.ndim == 3 and state.is_complex() and state.shape[1] == bins
        if not fits or state.numel() == 0:
            raise UdseError(
                f"expected a complex state of the shape (B, {bins}, T), got {described(state)}: make the "
                "spectrogram with the network's own settings (config['stft'])"
            )
        batch, _, frames = state.shape
        if not isinstance(time, Tensor):
            time = torch.full(
                (batch,), real_number("time", time, self.sde.times), dtype=torch.float32, device=self.device
            )
        time = time.expand(batch) if time.ndim == 0 else time
        if time.shape not in ((batch,), (batch, frames)):
            raise UdseError(
                f"expected one time, one per item ({batch},) or one per frame ({batch}, {frames}), "
                f"got {tuple(time.shape)}"
            )
        real_state = torch.view_as_real(state).movedim(-1, 1)
        inputs = [real_state.to(self.device, torch.float32), time.to(self.device, torch.float32)]
        if self.conditions or conditions.given:
            complete = self.module.completed(conditions, batch)
            inputs += complete.for_network(self.conditions, state, self.device, self.module.condition_sizes)
        return inputs


def _kind(module: Network) -> str:
    if module.tells_noise_variance:
        return "posterior"
    if not module.drifts:
        return "prior"
    return "tagged" if "latent" in module.conditions else "conditional"


def _differentiated(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _as_complex(score: Tensor, like: Tensor) -> Tensor:
    """(B, 2, F, T) real -> (B, F, T) complex, on the device and in the precision of `like`."""
    return torch.view_as_complex(score.movedim(1, -1).contiguous()).to(like.device, like.dtype)
