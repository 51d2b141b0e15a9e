"""`NativeStream`: a causal stream that runs in the C++ core, from samples to samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch

from udse_fast import _core
from udse_fast.backends.dispatch import wanted
from udse_fast.block_enhancer import BlockEnhancer, CausalBlockEnhancer
from udse_fast.model import Model
from udse_fast.networks.compact import Compact
from udse_fast.networks.compact_core import CompactCore
from udse_fast.networks.compact_posterior import CompactPosterior
from udse_fast.sampling.posterior import divergence
from udse_fast.settings import CHOICES
from udse_fast.streaming.channel import Samples
from udse_fast.streaming.stream import Stream
from udse_fast.video.track import VideoTrack

_NUMBERS: Final = (
    "steps", "samples", "shared_steps", "start_time", "end_time", "rank", "nmf_iterations", "em_rounds", "start_share",
    "wiener_exponent", "blend_ratio", "forgetting_seconds", "forgetting_spread", "noise_floor", "level_seconds",
)  # fmt: skip
"""Settings that the core takes."""
_MOST: Final = {"steps": 64, "samples": 64, "rank": 32, "em_rounds": 64}
"""What it is made for."""
_MOST_CHANNELS: Final = 64


def runs_natively(enhancer: BlockEnhancer[Any], channels: int) -> bool:
    """Whether the core has all of it: causal networks on the CPU in float32, and a kind of DDRM without a corrector."""
    model, settings = enhancer.model, enhancer.settings
    posterior = model.posterior_network
    return (
        isinstance(enhancer, CausalBlockEnhancer)
        and wanted("cpp")
        and (model.device.type, model.precision) == ("cpu", "float32")
        and model.sampler in ("ddrm", "amortised_ddrm")
        and type(model.network.module) is Compact
        and (posterior is None or type(posterior.module) is CompactPosterior)
        and settings.corrector_snr == 0
        and all(getattr(settings, name) <= most for name, most in _MOST.items())
        and channels <= _MOST_CHANNELS
    )


class NativeStream(Stream):
    """A `Stream` in the core: what it gives is the same, to rounding."""

    def __init__(
        self,
        enhancer: BlockEnhancer[Any],
        sample_rate: int,
        channels: int,
        max_attenuation_db: float | None = None,
        track: VideoTrack | None = None,
    ) -> None:
        self._core = _core_stream(enhancer, sample_rate, channels, max_attenuation_db)
        super().__init__(enhancer, sample_rate, channels, max_attenuation_db, track)

    def _start_anew(self) -> None:
        super()._start_anew()
        self._core.reset()
        self._between_calls()

    def _between_calls(self) -> None:
        self._waiting: list[Samples] = []  # (channels, n), not worked on yet
        self._ready: list[tuple[Samples, Samples]] = []  # speech and noise, (m, channels)
        self._ended = False

    def _new_channels(self) -> list[Any]:
        return []  # the core has them

    @property
    def latency_samples(self) -> int:
        return self._core.latency

    def _push(self, samples: Samples) -> None:
        self._waiting.append(samples)

    def _end(self) -> None:
        self._ended = True

    @staticmethod
    def _work(streams: Sequence[Any]) -> None:
        waiting = [stream for stream in streams if stream._waiting]
        while waiting:
            together = [stream for stream in waiting if stream._core.fits(waiting[0]._core)]
            waiting = [stream for stream in waiting if stream not in together]
            chunks = [np.ascontiguousarray(np.concatenate(stream._waiting, axis=1).T) for stream in together]
            results = _core.process_many([stream._core for stream in together], chunks)
            for stream, ready in zip(together, results, strict=True):
                stream._waiting = []
                stream._ready.append(ready)
        for stream in streams:
            stream._finish_work()

    def _finish_work(self) -> None:
        self._counts.network_calls = self._core.network_calls
        if self._core.recovered_blocks > self.fallbacks:
            if not self.enhancer.falls_back:
                raise divergence(self.enhancer.sampler_settings)
            self._note_fallbacks(self._core.recovered_blocks)
        if self._ended:
            self._ready.append(self._core.flush())

    def _taken(self) -> tuple[Any, Any]:
        nothing = np.zeros((0, self.channels), np.float32)
        parts = zip((nothing, nothing), *self._ready, strict=True)
        speech, noise = (np.ascontiguousarray(np.concatenate(rows).T) for rows in parts)
        self._ready = []
        return self._latest_format.from_float(speech), self._latest_format.from_float(noise)

    def _block_facts(self) -> dict[str, Any]:
        return {"blocks": f"causal, {_block_frames(self.enhancer)} frames", "memory": "native"}

    def _content(self) -> dict[str, Any]:
        state = torch.frombuffer(bytearray(self._core.state()), dtype=torch.uint8)
        waiting = [torch.from_numpy(samples) for samples in self._waiting]
        ready = [[torch.from_numpy(part) for part in both] for both in self._ready]
        return {**super()._content(), "core": state, "waiting": waiting, "ready": ready}

    def _go_on_from(self, content: dict[str, Any]) -> None:
        super()._go_on_from(content)
        self._core.restore(content["core"].numpy().tobytes())
        self._between_calls()
        self._waiting = [samples.numpy() for samples in content["waiting"]]
        self._ready = [(speech.numpy(), noise.numpy()) for speech, noise in content["ready"]]


def make_stream(
    enhancer: BlockEnhancer[Any],
    sample_rate: int,
    channels: int,
    max_attenuation_db: float | None,
    track: VideoTrack | None = None,
) -> Stream:
    """A stream of the kind that runs these blocks fastest; `track`: of an audio-visual prior."""
    kind = NativeStream if runs_natively(enhancer, channels) else Stream
    return kind(enhancer, sample_rate, channels, max_attenuation_db, track)


def _block_frames(enhancer: BlockEnhancer[Any]) -> int:
    return enhancer.settings.block_frames or enhancer.model.network.causal_block


_PRIORS: WeakKeyDictionary[CompactCore, WeakKeyDictionary[CompactCore, _core.StreamPrior]] = WeakKeyDictionary()
"""What streams of the same networks share: by the prior, and by the posterior network; that of none is the prior."""


def _core_prior(model: Model) -> _core.StreamPrior:
    core, config = model.network.core(), model.network.config
    posterior = None if model.posterior_network is None else model.posterior_network.core()
    of_prior = _PRIORS.setdefault(core, WeakKeyDictionary())
    beside = core if posterior is None else posterior
    if beside not in of_prior:
        signal = {**config["stft"], **config["compression"]}
        window = signal.pop("window")
        sde = {name: value for name, value in config["sde"].items() if name != "name"}
        fingerprint = int(model.fingerprints["checkpoint"], 16)
        if posterior is not None:
            fingerprint ^= int(model.fingerprints["posterior_checkpoint"], 16)
        of_prior[beside] = _core.StreamPrior(
            core.network,
            None if posterior is None else posterior.network,
            {**signal, **sde},
            window == "sqrt_hann",
            fingerprint,
        )
    return of_prior[beside]


def _core_stream(
    enhancer: BlockEnhancer[Any], sample_rate: int, channels: int, max_attenuation_db: float | None
) -> _core.NativeStream:
    model, settings = enhancer.model, enhancer.settings
    numbers = {name: getattr(settings, name) for name in _NUMBERS} | model.options
    numbers["block_frames"] = _block_frames(enhancer)
    numbers["remaining_noise"] = 0.0 if max_attenuation_db is None else 10 ** (-max_attenuation_db / 20)
    words = {name: getattr(settings, name) for name in CHOICES} | {"sampler": model.sampler}
    return _core.NativeStream(_core_prior(model), numbers, words, enhancer.seed, sample_rate, channels)
