"""`Network`: what an architecture is, and may be. Everything but the prediction itself has a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from udse_fast.audio.spectral import Spectral
from udse_fast.errors import UdseError
from udse_fast.networks.conditions import NO_WIDTHS, NOTHING, SPEECH_LABEL, Conditions, example_condition
from udse_fast.networks.estimate import Said
from udse_fast.networks.past import Past
from udse_fast.sampling.sde import SDE

Prediction = Literal["noise", "clean", "score"]

if TYPE_CHECKING:
    from udse_fast.networks.visual_encoder import VisualEncoder


class Float32:
    """A mixin of modules whose weights and buffers stay in float32 when the network is rounded to 16 bits.

    That goes for the modules in them, too.
    """


def to_channels_last(module: nn.Module) -> None:
    """Kernels over maps in the order of channels_last; those over video have no such order."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


class Network(nn.Module):
    """An architecture: a map from state, time and conditions to the noise, or to the clean spectrogram.

    It sees real tensors: states (B, 2, F, T) float32, real and imaginary part; conditions as
    `Conditions.for_network` makes them. `ScoreGraph` makes the score of its prediction, and scales what it sees:

    * "noise": `predict_noise(s_t, t, conditions)`, whose score is -noise / sigma(t);
    * "clean": `denoise(u, a, conditions)` of the unit-gain state u = s_t / delta at the noise level a = sigma / delta,
      whose score is (delta D(u, a) - s_t) / sigma^2 by Tweedie's formula. The network scales its input itself.
    * "score": `predict_score(s_t, t, sde, conditions)`, as it is.

    Where the diffusion `drifts` to a recording y, it is x_t = y + s_t with s_0 = x_0 - y, hence u = x_0 + a z =
    (x_t - (1 - delta) y) / delta: a "clean" network sees u and estimates x_0 as any other does.
    """

    predicts: ClassVar[Prediction] = "noise"
    frame_multiple: ClassVar[int] = 1
    """Number of frames must be a multiple of this; the score graph pads."""
    bins: int | None = None
    """F of the spectrograms that it is made for; None: several numbers of them, and a pass tells."""
    causal_block: int = 0
    """Frames of a block that sees itself and the past only; 0: every frame sees the future."""
    causal_blocks: ClassVar[Sequence[int]] = ()
    """Block lengths that a causal form is trained with, drawn anew for every batch."""
    has_posterior_variance: ClassVar[bool] = False
    """Whether it tells how far from the clean spectrogram its estimate is expected to be (`posterior`)."""
    drifts: ClassVar[bool] = False
    """Whether it is trained on pairs, of x_t = delta x_0 + (1 - delta) y + sigma z, and told the recording y."""
    sees: ClassVar[bool] = False
    """Whether it is trained on videos, with the visual encoder that it has."""
    tells_noise_variance: ClassVar[bool] = False
    """Whether it is a posterior network, which is told a recording and its noise variance, and has `say`."""
    has_core: ClassVar[bool] = False
    """Whether the C++ core has it (`networks.compact_core`)."""
    conditions: tuple[str, ...] = ()
    """Names of the `Conditions` that it reads, in the order in which an exported graph takes them."""
    spectral: Spectral = Spectral()
    """The transform that it is trained on."""
    learning_rate: ClassVar[float] = 1e-4
    """In training, where no other is asked for."""
    has_data_scale: ClassVar[bool] = False
    """Whether its argument `sigma_data` is the root mean square of the training spectrograms."""
    condition_sizes: Mapping[str, int] = NO_WIDTHS
    """Of the axes of its conditions that the state does not have, by name: {"p": 768}."""
    adam_betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    casts_itself: ClassVar[bool] = False
    """Whether it computes in `training_dtype` by itself; otherwise training in 16 bits is torch's autocast."""
    training_dtype: torch.dtype | None = None
    """bfloat16 computes in it with float32 weights (training); None computes in the dtype of the weights."""

    @property
    def visual_encoder(self) -> VisualEncoder | None:
        """From mouth crops to the video features that it is told, where it has one."""
        return None

    def conditions_of(self, tensors: Sequence[Tensor]) -> Conditions:
        """Those that it reads, from tensors in the order of their names."""
        return Conditions(**dict(zip(self.conditions, tensors, strict=True)))

    def completed(self, conditions: Conditions, batch: int) -> Conditions:
        """With what stands for a condition that it reads and that is not given: speech, for a label.

        Conditions that must be given stay absent.
        """
        if "label" not in self.conditions or conditions.label is not None:
            return conditions
        return conditions.merged(Conditions(label=torch.full((batch,), SPEECH_LABEL)))

    def example(self, batch: int, bins: int, frames: int) -> list[Tensor]:
        """Inputs of a score graph: a random state (B, 2, F, T), times (B,) and the conditions that it reads."""
        generator = torch.Generator().manual_seed(0)
        state = torch.randn(batch, 2, bins, frames, generator=generator, dtype=torch.float32) * 0.4
        time = torch.linspace(0.9, 0.2, batch, dtype=torch.float32)
        sizes = {"B": batch, "F": bins, "T": frames, **self.condition_sizes}
        return [state, time, *(example_condition(name, sizes, generator) for name in self.conditions)]

    def predict_noise(self, state: Tensor, time: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """z of s_t = delta s_0 + sigma z, (B, 2, F, T) float32; time (B,) or one per frame (B, T)."""
        raise UdseError(f"{type(self).__name__}: expected a network that predicts the noise, got one that does not")

    def predict_score(self, state: Tensor, time: Tensor, sde: SDE, conditions: Conditions = NOTHING) -> Tensor:
        """S(x_t, t), (B, 2, F, T) float32; time (B,) or one per frame (B, T), of the process `sde`."""
        raise UdseError(f"{type(self).__name__}: expected a network that predicts the score, got one that does not")

    def denoise(self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """E[s_0 | u], (B, 2, F, T) float32, of u at the noise level a, (B,) or one per frame (B, T)."""
        return self.posterior(noisy, noise_level, conditions)[0]

    def posterior(
        self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """`denoise`, and E|s_0 - E[s_0 | u]|^2 (B, F, T) float32; `past`: what a causal network saw before, updated."""
        raise UdseError(f"{type(self).__name__}: expected a network that tells its variance, got one that does not")

    def say(
        self,
        mixture: Tensor,
        noise_variance: Tensor,
        state: Tensor | None = None,
        noise_level: Tensor | None = None,
        past: Past | None = None,
    ) -> Said:
        """One call of a posterior network, see `CompactPosterior`."""
        raise UdseError(f"{type(self).__name__}: expected a posterior network, got one that is told no recording")

    def set_causal_block(self, frames: int) -> None:
        """Another block length for a causal network."""
        raise UdseError(f"{type(self).__name__}: expected a network that can be causal, got one that cannot")

    @classmethod
    def from_prior(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a network that is told less as the start of one of this kind."""
        return weights

    @classmethod
    def made_causal(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a network that sees the future as the start of a causal one."""
        raise UdseError(f"{cls.__name__}: expected a network that can be causal, got one that cannot")

    def hidden_matrices(self) -> list[Tensor]:
        """Weights that map hidden features to hidden features: what Muon is for."""
        return []

    def loss_weight(self, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """(B,) weight of ||sigma S + z||^2 in training, at the noise levels a (B,)."""
        return torch.ones_like(noise_level)
