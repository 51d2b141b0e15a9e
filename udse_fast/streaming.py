"""`Stream`: chunks of any length in, enhanced audio out, aligned sample for sample."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.audio import AudioFormat
from udse_fast.diffusion import Pass
from udse_fast.errors import UdseError
from udse_fast.lockstep import in_step, run
from udse_fast.resampling import Resampler


class Blocks(Protocol):
    """What cuts a signal at the network's rate into reverse passes: `OverlapBlocks` or `CausalBlocks`."""

    @property
    def latency(self) -> int:
        """Samples that must follow a sample before it is given out, at most."""

    @property
    def outputs(self) -> int:
        """Signals that come out for the one that goes in."""

    def pushing(self, samples: Tensor) -> Pass[Tensor]:
        """(n,) -> (outputs, m)."""

    def finishing(self) -> Pass[Tensor]:
        """The rest, (outputs, m)."""

    def state(self) -> dict[str, Any]:
        """Everything that the next sample depends on."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class _Channel:
    """One channel: to the network's rate, through blocks, and back."""

    def __init__(self, blocks: Blocks, rate: int, network_rate: int) -> None:
        self.blocks = blocks
        self.before = Resampler(rate, network_rate)
        self.after = [Resampler(network_rate, rate) for _ in range(blocks.outputs)]

    def pushing(self, samples: NDArray[np.float32]) -> Pass[list[NDArray[np.float32]]]:
        ready = yield from self.blocks.pushing(torch.from_numpy(self.before.push(samples)))
        return [resampler.push(out) for resampler, out in zip(self.after, ready.numpy(), strict=True)]

    def finishing(self) -> Pass[list[NDArray[np.float32]]]:
        pushed = yield from self.blocks.pushing(torch.from_numpy(self.before.finish()))
        rest = yield from self.blocks.finishing()
        ready = torch.cat([pushed, rest], dim=1).numpy()
        return [
            np.concatenate([resampler.push(out), resampler.finish()])
            for resampler, out in zip(self.after, ready, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        return {
            "blocks": self.blocks.state(),
            "before": self.before.state(),
            "after": [resampler.state() for resampler in self.after],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.blocks.restore(state["blocks"])
        self.before.restore(state["before"])
        for resampler, kept in zip(self.after, state["after"], strict=True):
            resampler.restore(kept)


class Stream:
    """A running signal. Made by `Enhancer.open_stream`; streams of one Enhancer do not disturb each other.

    The concatenated output does not depend on how the input is cut into chunks, has its length, and is aligned with it.
    Methods may be called from several threads; each call sees the signal as the calls before it left it.
    """

    def __init__(self, make_blocks: Callable[[], Blocks], network_rate: int, sample_rate: int, channels: int) -> None:
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise UdseError(f"channels: expected a whole number >= 1, got {channels!r}")
        self.sample_rate, self.channels = sample_rate, channels
        self._make_blocks, self._network_rate = make_blocks, network_rate
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next sample is the first."""
        with self._lock:
            self._channels = [
                _Channel(self._make_blocks(), self.sample_rate, self._network_rate) for _ in range(self.channels)
            ]
            self._format: AudioFormat | None = None
            self._received = self._returned = 0
            self._busy_seconds = 0.0
            self._last_seconds = 0.0

    @property
    def latency_samples(self) -> int:
        """Greatest number of samples, at the stream's rate, that must follow a sample before it is returned.

        Exact at the network's rate; at others it is an upper bound, with the time that resampling there and back takes.
        """
        rate, network_rate, channel = self.sample_rate, self._network_rate, self._channels[0]
        at_network_rate = channel.blocks.latency + channel.after[0].delay
        return channel.before.delay + at_network_rate * rate // network_rate

    @property
    def latency_seconds(self) -> float:
        """`latency_samples` in seconds."""
        return self.latency_samples / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio so far."""
        return self._busy_seconds * self.sample_rate / max(1, self._received)

    @property
    def last_seconds(self) -> float:
        """Time that the last call took: above the length of its chunk, a live stream falls behind."""
        return self._last_seconds

    def process(self, chunk: Any) -> Any:
        """Feed a chunk (n,) or (channels, n), n >= 0; returns what is ready, in the same form.

        NaN and infinite samples are taken for silence: a live stream goes on.

        Raises:
            UdseError: another shape, or another dtype or kind than the chunks before.
        """
        return self.separate(chunk)[0]

    def separate(self, chunk: Any) -> tuple[Any, Any]:
        """`process` with the noise as well."""
        with self._lock, torch.inference_mode():
            return run(self._separating(self._checked(chunk)))

    def _checked(self, chunk: Any) -> NDArray[np.float32]:
        """Samples (channels, n) of a chunk; nothing has happened where it is refused."""
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
        return samples

    def _separating(self, samples: NDArray[np.float32]) -> Pass[tuple[Any, Any]]:
        started = time.perf_counter()
        passes = [channel.pushing(row) for channel, row in zip(self._channels, samples, strict=True)]
        results = yield from in_step(passes)
        self._last_seconds = time.perf_counter() - started
        self._busy_seconds += self._last_seconds
        self._received += samples.shape[1]
        return self._given_back(results)

    def flush(self) -> Any:
        """The rest of the signal; afterwards the stream starts anew."""
        return self.flush_separate()[0]

    def flush_separate(self) -> tuple[Any, Any]:
        """`flush` with the noise as well."""
        with self._lock, torch.inference_mode():
            if self._format is None:
                empty = np.zeros(0 if self.channels == 1 else (self.channels, 0), np.float32)
                return empty, empty.copy()
            results = run(in_step([channel.finishing() for channel in self._channels]))
            left = self._received - self._returned  # the way there and back may give a sample or so more
            results = [[out[:left] for out in pair] for pair in results]
            out = self._given_back(results)
            self.reset()
            return out

    def _given_back(self, results: list[list[NDArray[np.float32]]]) -> tuple[Any, Any]:
        assert self._format is not None
        speech, noise = (np.stack(rows) for rows in zip(*results, strict=True))
        self._returned += speech.shape[1]
        return self._format.from_float(speech), self._format.from_float(noise)

    def state(self) -> dict[str, Any]:
        """A copy of everything that the samples to come depend on: a dict of tensors, arrays, numbers and lists.

        `torch.save` writes it (`torch.load(..., weights_only=False)` reads it); `restore` of a stream that was opened
        with the same settings goes on from it.
        """
        with self._lock:
            return copy.deepcopy(self._present())

    def _present(self) -> dict[str, Any]:
        return {
            "sample_rate": self.sample_rate,
            "channels": [channel.state() for channel in self._channels],
            "format": self._format,
            "received": self._received,
            "returned": self._returned,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, bit for bit as the stream that it was taken from.

        Raises:
            UdseError: not a state, or that of a stream with other settings.
        """
        with self._lock:
            ours, theirs = _kind(self._present()), _kind(state)
            if ours != theirs:
                raise UdseError(f"restore: expected the state of a stream of {ours}, got {theirs}")
            state = copy.deepcopy(state)
            for channel, kept in zip(self._channels, state["channels"], strict=True):
                channel.restore(kept)
            self._format = state["format"]
            self._received, self._returned = state["received"], state["returned"]


def _kind(state: Any) -> str:
    """What must fit for one state to be put in place of another."""
    try:
        blocks = state["channels"][0]["blocks"]["kind"]
        return f"{state['sample_rate']} Hz, {len(state['channels'])} channel(s), blocks: {blocks}"
    except (TypeError, KeyError, IndexError):
        return f"something else ({type(state).__name__})"


def process_together(streams: Sequence[Stream], chunks: Sequence[Any]) -> list[Any]:
    """`process` of every stream with its chunk, network calls of the same network as one batch.

    Raises:
        UdseError: as many streams as chunks are expected, each stream once; what `process` raises.
    """
    if len(streams) != len(chunks) or len({id(stream) for stream in streams}) != len(streams):
        raise UdseError(f"expected one chunk for each of the streams, all different, got {len(streams)}, {len(chunks)}")
    with contextlib.ExitStack() as stack:
        for stream in sorted(streams, key=id):  # one order for all threads
            stack.enter_context(stream._lock)
        stack.enter_context(torch.inference_mode())
        checked = [stream._checked(chunk) for stream, chunk in zip(streams, chunks, strict=True)]
        passes = [stream._separating(samples) for stream, samples in zip(streams, checked, strict=True)]
        return [speech for speech, _ in run(in_step(passes))]
