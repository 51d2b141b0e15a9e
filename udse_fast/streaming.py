"""`Stream`: chunks of any length in, enhanced audio out, aligned sample for sample."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast.audio import AudioFormat
from udse_fast.blocks import OverlapBlocks
from udse_fast.errors import UdseError
from udse_fast.resampling import Resampler, resampling_delay

if TYPE_CHECKING:
    from udse_fast.enhancer import Enhancer, InferenceSettings


class _Channel:
    """One channel: to the network's rate, through overlapping blocks, and back."""

    def __init__(self, blocks: OverlapBlocks, rate: int, network_rate: int) -> None:
        self.blocks = blocks
        self.before = Resampler(rate, network_rate)
        self.after = [Resampler(network_rate, rate) for _ in range(blocks.outputs)]

    def push(self, samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        ready = self.blocks.push(torch.from_numpy(self.before.push(samples)))
        return [resampler.push(out) for resampler, out in zip(self.after, ready.numpy(), strict=True)]

    def finish(self) -> list[NDArray[np.float32]]:
        ready = torch.cat([self.blocks.push(torch.from_numpy(self.before.finish())), self.blocks.finish()], dim=1)
        return [
            np.concatenate([resampler.push(out), resampler.finish()])
            for resampler, out in zip(self.after, ready.numpy(), strict=True)
        ]


class Stream:
    """A running signal. Made by `Enhancer.open_stream`; streams of one Enhancer do not disturb each other.

    The concatenated output does not depend on how the input is cut into chunks, has its length, and is aligned with it.
    """

    def __init__(self, enhancer: Enhancer, sample_rate: int, channels: int, settings: InferenceSettings) -> None:
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise UdseError(f"channels: expected a whole number >= 1, got {channels!r}")
        self.sample_rate, self.channels = sample_rate, channels
        self._enhancer, self._settings = enhancer, settings
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next sample is the first."""
        network_rate = self._enhancer.spectral.sample_rate
        self._channels = [
            _Channel(
                self._enhancer.blocks(settings=self._settings, carry_noise=True),
                self.sample_rate,
                network_rate,
            )
            for _ in range(self.channels)
        ]
        self._format: AudioFormat | None = None
        self._received = self._returned = 0
        self._busy_seconds = 0.0

    @property
    def latency_samples(self) -> int:
        """Greatest number of samples, at the stream's rate, that must follow a sample before it is returned.

        Exact at the network's rate; at others it is an upper bound, with the time that resampling there and back takes.
        """
        rate, network_rate = self.sample_rate, self._enhancer.spectral.sample_rate
        at_network_rate = self._channels[0].blocks.latency + resampling_delay(network_rate, rate)
        return -(-at_network_rate * rate // network_rate) + resampling_delay(rate, network_rate)

    @property
    def latency_seconds(self) -> float:
        """`latency_samples` in seconds."""
        return self.latency_samples / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio so far."""
        return self._busy_seconds * self.sample_rate / max(1, self._received)

    def process(self, chunk: Any) -> Any:
        """Feed a chunk (n,) or (channels, n), n >= 0; returns what is ready, in the same form.

        NaN and infinite samples are taken for silence: a live stream goes on.

        Raises:
            UdseError: another shape, or another dtype or kind than the chunks before.
        """
        return self.separate(chunk)[0]

    def separate(self, chunk: Any) -> tuple[Any, Any]:
        """`process` with the noise as well."""
        audio_format = AudioFormat.of(chunk, "chunk")
        if self._format is not None and audio_format != self._format:
            raise UdseError(
                f"chunk: expected the form of the first one ({self._format.dtype}, "
                f"{'torch' if self._format.is_torch else 'numpy'}), got {audio_format}; reset() starts a new signal"
            )
        samples = np.nan_to_num(audio_format.to_float(chunk), nan=0.0, posinf=0.0, neginf=0.0)
        if samples.shape[0] != self.channels:
            raise UdseError(f"chunk: expected {self.channels} channels, got the shape {tuple(chunk.shape)}")
        self._format = audio_format
        started = time.perf_counter()
        results = [channel.push(row) for channel, row in zip(self._channels, samples, strict=True)]
        self._busy_seconds += time.perf_counter() - started
        self._received += samples.shape[1]
        return self._given_back(results)

    def flush(self) -> Any:
        """The rest of the signal; afterwards the stream starts anew."""
        return self.flush_separate()[0]

    def flush_separate(self) -> tuple[Any, Any]:
        """`flush` with the noise as well."""
        if self._format is None:
            empty = np.zeros(0 if self.channels == 1 else (self.channels, 0), np.float32)
            return empty, empty.copy()
        results = [channel.finish() for channel in self._channels]
        # two resamplings may be off by a sample or so
        left = self._received - self._returned
        results = [[np.pad(out[:left], (0, max(0, left - len(out)))) for out in pair] for pair in results]
        out = self._given_back(results)
        self.reset()
        return out

    def _given_back(self, results: list[list[NDArray[np.float32]]]) -> tuple[Any, Any]:
        assert self._format is not None
        speech, noise = (np.stack(rows) for rows in zip(*results, strict=True))
        self._returned += speech.shape[1]
        return self._format.from_float(speech), self._format.from_float(noise)
