"""Causal streaming: a few frames at a time, each enhanced once, everything else remembered.

A block of K frames runs through all reverse steps with what the network saw before at each of them (`CausalPrior`), a
noise model that goes on learning (`OnlineNMF`), a level that knows the past only, and noise numbered by absolute frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.sampling.noise_models import OnlineNMF
from udse_fast.sampling.posterior import Posterior
from udse_fast.sampling.read_out import ReadOut
from udse_fast.sampling.requests import Pass
from udse_fast.streaming.causal_prior import CausalPrior

LEAST_LEVEL = 1e-6
"""Largest compressed modulus below which a block counts as digital silence."""
RELEASE_SECONDS = 0.5
"""In which the level falls to 1/e once the loudest frame is forgotten: a step would be heard by the prior."""

Sample = Callable[[Tensor, int, CausalPrior, OnlineNMF], Pass[Posterior]]
"""(x (F, K) complex, absolute number of the first frame, prior, noise model) -> samples of the speech."""


class CausalBlocks:
    """Push samples of any number in, get what is ready out, aligned; `finishing` returns the rest.

    Args:
        spectral: STFT and compression.
        block_frames: K.
        level_seconds: for which the loudest frame sets the level that the prior is shown.
        prior, noise_model: with their memories.
        sample: the reverse pass of one block.
        read_out: of its samples.
        attenuation: greatest attenuation of the noise, a factor; 0 for no limit.
        device: of the computation.
    """

    outputs = 2

    def __init__(
        self,
        spectral: Spectral,
        block_frames: int,
        level_seconds: float,
        prior: CausalPrior,
        noise_model: OnlineNMF,
        sample: Sample,
        read_out: ReadOut,
        attenuation: float,
        device: torch.device,
    ) -> None:
        self.spectral, self.block_frames = spectral, block_frames
        self.prior, self.noise_model, self.read_out = prior, noise_model, read_out
        self._sample = sample
        self.attenuation, self.device = attenuation, device
        hop, n_fft = spectral.hop_length, spectral.n_fft
        self._hops = block_frames * hop
        self._window = (block_frames - 1) * hop + n_fft
        block_seconds = self._hops / spectral.sample_rate
        self._release = math.exp(-block_seconds / RELEASE_SECONDS)
        self._input = torch.zeros(n_fft // 2)  # centred frames: the first reaches half a window before the signal
        self._sum = torch.zeros(2, n_fft - hop)  # overlap-add of speech, and of the squared windows
        self._level = torch.zeros(())
        self._loudest = torch.zeros(max(1, round(level_seconds / block_seconds)))  # of each of the last blocks
        self._frame = 0
        self._skip = n_fft // 2  # samples before the signal starts
        self._received = self._returned = 0

    @property
    def latency(self) -> int:
        """Samples that must follow a sample before it is given out, at most."""
        return self._window - 1

    @property
    def kind(self) -> str:
        """What a state must be of to be taken over."""
        return f"causal, {self.block_frames} frames"

    @property
    def first(self) -> int:
        """Samples that must come before anything is given out."""
        return self._window - self.spectral.n_fft // 2

    @property
    def advance(self) -> int:
        """Samples that are given out at a time."""
        return self._hops

    def pushing(self, samples: Tensor) -> Pass[Tensor]:
        """(n,) -> (2, m): speech and noise, m >= 0."""
        self._received += len(samples)
        self._input = torch.cat([self._input, samples])
        done = [torch.zeros(2, 0)]
        while len(self._input) >= self._window:
            done.append((yield from self._block()))
        out = torch.cat(done, dim=1)
        self._returned += out.shape[1]
        return out

    def finishing(self) -> Pass[Tensor]:
        """(2, m): everything that was not given out yet, as if silence followed."""
        left = self._received - self._returned
        blocks = -(-(left + self._skip) // self._hops)
        missing = max(0, blocks * self._hops + self._window - self._hops - len(self._input))
        received = self._received
        rest = yield from self.pushing(torch.zeros(missing))
        self._received = received
        return rest[:, :left]

    def _block(self) -> Pass[Tensor]:
        """The next K frames; gives out K hops."""
        spectral, hop, n_fft = self.spectral, self.spectral.hop_length, self.spectral.n_fft
        signal = self._input[: self._window].to(self.device)
        compressed = spectral.compress(spectral.stft(signal, center=False))
        self._loudest = torch.cat([self._loudest[1:], compressed.abs().amax().cpu().reshape(1)])
        self._level = torch.maximum(self._loudest.max(), self._level * self._release)
        speech = torch.zeros_like(compressed)
        if self._level > LEAST_LEVEL:
            level = self._level.to(self.device)
            normalised = compressed / level
            posterior = yield from self._sample(normalised, self._frame, self.prior, self.noise_model)
            speech = self.read_out(posterior, normalised, level)
        added = spectral.overlap_add(speech).cpu()
        added[:, : n_fft - hop] += self._sum
        out, self._sum = added[:, : self._hops], added[:, self._hops :]
        mixture = self._input[: self._hops]
        estimate = out[0] / out[1].clamp_min(1e-3)
        estimate = estimate + self.attenuation * (mixture - estimate)
        both = torch.stack([estimate, mixture - estimate])[:, self._skip :]
        self._skip = max(0, self._skip - self._hops)
        self._input = self._input[self._hops :]
        self._frame += self.block_frames
        return both

    def state(self) -> dict[str, Any]:
        """Everything that the next sample depends on: tensors, numbers, lists of them."""
        names = ("_input", "_sum", "_level", "_loudest", "_frame", "_skip", "_received", "_returned")
        return {
            **{name: getattr(self, name) for name in names},
            "prior": self.prior.state(),
            "noise_model": self.noise_model.state(),
            "read_out": self.read_out.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, value in state.items():
            if name.startswith("_"):
                setattr(self, name, value)
        self.prior.restore(state["prior"])
        self.noise_model.restore(state["noise_model"])
        self.read_out.restore(state["read_out"])
