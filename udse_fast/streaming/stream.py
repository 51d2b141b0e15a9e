"""`Stream`: chunks of any length in, enhanced audio out, aligned sample for sample."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.audio.format import AudioFormat
from udse_fast.audio.resampling import Resampler
from udse_fast.checkpoints.checkpoint import tensor_bytes
from udse_fast.checks import Range, described, whole_number
from udse_fast.errors import UdseError
from udse_fast.sampling.passes import gather, run
from udse_fast.sampling.requests import Pass, Result

STATE_VERSION = 1
Outputs = list[list[NDArray[np.float32]]]
"""Speech and noise of every channel."""


class Blocks(Protocol):
    """What cuts a signal at the network's rate into reverse passes: `OverlapBlocks` or `CausalBlocks`."""

    @property
    def latency(self) -> int:
        """Samples that must follow a sample before it is given out, at most."""

    @property
    def first(self) -> int:
        """Samples that must come before anything is given out."""

    @property
    def advance(self) -> int:
        """Samples that are given out at a time."""

    @property
    def outputs(self) -> int:
        """Signals that come out for the one that goes in."""

    @property
    def kind(self) -> str:
        """What a state must be of to be taken over."""

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

    def __init__(
        self,
        make_blocks: Callable[[], Blocks],
        network_rate: int,
        sample_rate: int,
        channels: int,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self.sample_rate, self.channels = sample_rate, whole_number("channels", channels, Range(1, 1024))
        self._make_blocks, self._network_rate = make_blocks, network_rate
        self._facts = facts  # what a state belongs to, besides rate, channels and blocks
        self._latest_format = AudioFormat(False, "float32", one_dimensional=channels == 1)
        self._lock = threading.RLock()
        self.reset()

    def __getstate__(self) -> NoReturn:
        raise UdseError("a Stream is not copied; state() gives what restore() of another stream goes on from")

    def reset(self) -> None:
        """Forget everything; the next sample is the first."""
        with self._lock:
            self._channels = self._new_channels()
            self._format: AudioFormat | None = None
            self._received = self._returned = 0
            self._busy_seconds = 0.0
            self._last_seconds = 0.0

    def _new_channels(self) -> list[_Channel]:
        return [_Channel(self._make_blocks(), self.sample_rate, self._network_rate) for _ in range(self.channels)]

    @property
    def latency_samples(self) -> int:
        """Greatest number of samples, at the stream's rate, that must follow a sample before it is returned: exact."""
        channel = self._channels[0]
        common = math.gcd(self.sample_rate, self._network_rate)
        rate, network_rate = self.sample_rate // common, self._network_rate // common
        # in units of 1 / network_rate of our samples
        held = (channel.blocks.latency + channel.after[0].delay) * rate
        # blocks end at samples first - 1, first - 1 + advance, ... of the network's rate, which are not all of ours:
        # the whole sample that is missing where none of them falls late enough between two
        end = (channel.blocks.first - 1) * rate % math.gcd(channel.blocks.advance, network_rate)
        return channel.before.delay + held // network_rate - (end > held % network_rate)

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
        with self._lock:
            return self._given_back(_run([self._separating(self._checked(chunk))])[0])

    def _checked(self, chunk: Any) -> NDArray[np.float32]:
        """Samples (channels, n) of a chunk; nothing has happened where it is refused."""
        audio_format = AudioFormat.of(chunk, "chunk", self.channels)
        if self._format is not None and audio_format != self._format:
            raise UdseError(
                f"chunk: expected chunks like the first, {self._format}, got {audio_format}; "
                "reset() starts a new signal"
            )
        samples = np.nan_to_num(audio_format.to_float(chunk), nan=0.0, posinf=0.0, neginf=0.0)
        if samples.shape[0] != self.channels:
            raise UdseError(f"chunk: expected {self.channels} channels, got the shape {tuple(chunk.shape)}")
        self._format = self._latest_format = audio_format
        return samples

    def _separating(self, samples: NDArray[np.float32]) -> Pass[Outputs]:
        started = time.perf_counter()
        passes = [channel.pushing(row) for channel, row in zip(self._channels, samples, strict=True)]
        results = yield from gather(passes)
        self._last_seconds = time.perf_counter() - started
        self._busy_seconds += self._last_seconds
        self._received += samples.shape[1]
        return results

    def flush(self) -> Any:
        """The rest of the signal; afterwards the stream starts anew."""
        return self.flush_separate()[0]

    def flush_separate(self) -> tuple[Any, Any]:
        """`flush` with the noise as well."""
        with self._lock:
            if self._format is None:  # nothing came since the last signal, or at all
                empty = np.zeros((self.channels, 0), np.float32)
                return self._latest_format.from_float(empty), self._latest_format.from_float(empty)
            results = _run([channel.finishing() for channel in self._channels])
            left = self._received - self._returned  # the way there and back may give a sample or so more
            out = self._given_back([[out[:left] for out in pair] for pair in results])
            self.reset()
            return out

    def _given_back(self, results: Outputs) -> tuple[Any, Any]:
        """Outside of inference mode, whose tensors could not be used for everything."""
        assert self._format is not None
        speech, noise = (np.stack(rows) for rows in zip(*results, strict=True))
        self._returned += speech.shape[1]
        return self._format.from_float(speech), self._format.from_float(noise)

    def state(self) -> dict[str, Any]:
        """A copy of everything that the samples to come depend on: a dict of tensors, numbers and lists.

        `torch.save` writes it and `torch.load` reads it; `restore` of a stream that was opened
        with the same settings, of an Enhancer with the same prior, goes on from it.
        """
        with self._lock:
            content = {
                "channels": [channel.state() for channel in self._channels],
                "format": None if self._format is None else asdict(self._format),
                "received": self._received,
                "returned": self._returned,
            }
            facts = self._all_facts()
            return {"belongs_to": facts, "content": copy.deepcopy(content), "digest": _digest([facts, content])}

    def _all_facts(self) -> dict[str, Any]:
        facts = {name: value for name, value in self._facts().items() if name != "block_frames"}  # `blocks` has them
        blocks = self._channels[0].blocks.kind
        own = {"version": STATE_VERSION, "sample_rate": self.sample_rate, "channels": self.channels, "blocks": blocks}
        return own | facts

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, bit for bit as the stream that it was taken from.

        Raises:
            UdseError: not a state, a damaged one, or that of a stream with other settings; this stream is as before.
        """
        with self._lock:
            if not isinstance(state, dict) or not isinstance(state.get("belongs_to"), dict):
                raise UdseError(f"restore: expected what state() of a stream gave, got {type(state).__name__}")
            ours, theirs = self._all_facts(), state["belongs_to"]
            if changed := [n for n in {**ours, **theirs} if repr(ours.get(n)) != repr(theirs.get(n))]:
                expected, got = (", ".join(f"{n} {facts.get(n)!r}" for n in changed) for facts in (ours, theirs))
                raise UdseError(f"restore: expected the state of a stream with {expected}; got one with {got}")
            # with these facts and the right digest, the content is that of such a stream: nothing else can be wrong
            try:
                content = copy.deepcopy(state["content"])
                intact = str(state["digest"]) == _digest([theirs, content])
            except Exception:  # whatever is in there instead
                intact = False
            if not intact:
                raise UdseError(
                    "restore: expected a state as state() gave it, got one that was damaged or changed since; "
                    "take another one"
                )
            channels = self._new_channels()
            for channel, kept in zip(channels, content["channels"], strict=True):
                channel.restore(kept)
            self._channels = channels
            self._format = None if content["format"] is None else AudioFormat(**content["format"])
            self._received, self._returned = content["received"], content["returned"]


def _run(passes: Sequence[Pass[Result]]) -> list[Result]:
    with torch.inference_mode():
        return run(gather(passes))


def _digest(value: Any) -> str:
    """Hash of dicts and lists of tensors, arrays and plain values; equal after a copy, or a way through a file."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, (Tensor, np.ndarray)):
            place = value.device.type if isinstance(value, Tensor) else ""
            digest.update(f"{described(value)} {place};".encode())
            digest.update(tensor_bytes(value) if isinstance(value, Tensor) else value.tobytes())
        elif isinstance(value, (dict, list, tuple)):
            digest.update(f"{type(value).__name__} {len(value)};".encode())
            for part in value.items() if isinstance(value, dict) else value:
                add(part)
        else:
            digest.update(f"{value!r};".encode())

    add(value)
    return digest.hexdigest()


def process_together(streams: Sequence[Stream], chunks: Sequence[Any]) -> list[Any]:
    """`process` of every stream with its chunk, network calls of the same network as one batch.

    Raises:
        UdseError: as many streams as chunks are expected, each stream once; what `process` raises.
    """
    for name, value, kind in (("streams", streams, Stream), ("chunks", chunks, object)):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, kind) for v in value):
            raise UdseError(f"{name}: expected a list, of Streams and their chunks, got {value!r:.60}")
    if len(streams) != len(chunks) or len({id(stream) for stream in streams}) != len(streams):
        raise UdseError(f"expected one chunk for each of the streams, all different, got {len(streams)}, {len(chunks)}")
    with contextlib.ExitStack() as stack:
        for stream in sorted(streams, key=id):  # one order for all threads
            stack.enter_context(stream._lock)
        checked = [stream._checked(chunk) for stream, chunk in zip(streams, chunks, strict=True)]
        results = _run([stream._separating(samples) for stream, samples in zip(streams, checked, strict=True)])
        return [stream._given_back(result)[0] for stream, result in zip(streams, results, strict=True)]
