"""`Stream`: chunks of any length in, enhanced audio out, aligned sample for sample."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.audio.format import AudioFormat
from udse_fast.block_enhancer import BlockEnhancer, enhance_blocks
from udse_fast.checks import Range, whole_number
from udse_fast.errors import UdseError
from udse_fast.settings import InferenceSettings
from udse_fast.streaming.blocks import Block, Enhanced
from udse_fast.streaming.channel import Channel, Samples
from udse_fast.streaming.stored_state import STATE_VERSION, checked_content, stored
from udse_fast.video.track import VideoTrack

CHANNELS: Final = Range(1, 1024)
"""Of a stream."""
Audio = TypeVar("Audio", NDArray[Any], Tensor)
"""Audio in the user's form, which is the form of what comes back."""
_FALL_BACK = (
    "sampler {!r} diverged in a block of a stream: the mixture is given out 20 dB down there, and so in later blocks "
    "without a word (Stream.fallbacks counts them); more steps or less guidance keep it from that"
)


@dataclass
class Counts:
    """Of one signal so far."""

    received: int = 0
    busy_seconds: float = 0.0
    last_seconds: float = 0.0
    fallbacks: int = 0
    network_calls: int = 0


class Stream:
    """A running signal. Made by `Enhancer.open_stream`; streams of one Enhancer do not disturb each other.

    The concatenated output does not depend on how the input is cut into chunks, has its length, and is aligned with it.
    Methods may be called from several threads; each call sees the signal as the calls before it left it.

    A call that fails, because a network call raises something, loses nothing: the samples that it brought are kept, and
    the next call (of `process`, also with no samples, or `flush`) repeats the block that failed.
    """

    def __init__(
        self,
        enhancer: BlockEnhancer[Any],
        sample_rate: int,
        channels: int,
        max_attenuation_db: float | None = None,
        track: VideoTrack | None = None,
    ) -> None:
        self.track = track
        """The video of the signal, where the prior is an audio-visual one."""
        if track is not None:
            enhancer = replace(enhancer, tell=track.tell)
        self.sample_rate, self.channels = sample_rate, whole_number("channels", channels, CHANNELS)
        self.enhancer, self.max_attenuation_db = enhancer, max_attenuation_db
        self._latest_format = AudioFormat(False, "float32", one_dimensional=channels == 1)
        self._lock = threading.RLock()
        self.reset()

    def __getstate__(self) -> NoReturn:
        raise UdseError("a Stream is not copied; state() gives what restore() of another stream goes on from")

    @property
    def settings(self) -> InferenceSettings:
        """How this stream samples and cuts its signal."""
        return self.enhancer.settings

    def reset(self) -> None:
        """Forget everything; the next sample is the first."""
        with self._lock:
            self._start_anew()
            self._counts = Counts()

    def _start_anew(self) -> None:
        self._channels = self._new_channels()
        self._format: AudioFormat | None = None
        if self.track is not None:
            self.track.reset()

    def _new_channels(self) -> list[Channel]:
        network_rate = self.enhancer.model.spectral.sample_rate
        leave = 0.0 if self.max_attenuation_db is None else 10 ** (-self.max_attenuation_db / 20)
        return [
            Channel(self.enhancer.new_blocks(), self.sample_rate, network_rate, leave, self.settings.high_band)
            for _ in range(self.channels)
        ]

    @property
    def latency_samples(self) -> int:
        """Greatest number of samples, at the stream's rate, that must follow a sample before it is returned: exact."""
        channel = self._channels[0]
        blocks, network_rate = channel.blocks, channel.before.target
        common = math.gcd(self.sample_rate, network_rate)
        rate, network_rate = self.sample_rate // common, network_rate // common
        # in units of 1 / network_rate of our samples
        held = (blocks.latency + channel.delay) * rate
        # blocks end at samples first - 1, first - 1 + advance, ... of the network's rate, which are not all of ours:
        # the whole sample that is missing where none of them falls late enough between two
        end = (blocks.first - 1) * rate % math.gcd(blocks.advance, network_rate)
        return channel.before.delay + held // network_rate - (end > held % network_rate)

    @property
    def latency_seconds(self) -> float:
        """`latency_samples` in seconds."""
        return self.latency_samples / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio, of this signal or, when it was flushed, of the last."""
        return self._counts.busy_seconds * self.sample_rate / max(1, self._counts.received)

    @property
    def last_seconds(self) -> float:
        """Time that the last call took: above the length of its chunk, a live stream falls behind."""
        return self._counts.last_seconds

    @property
    def fallbacks(self) -> int:
        """Blocks of this signal in which the sampler diverged, and the mixture was given out 20 dB down instead."""
        return self._counts.fallbacks

    @property
    def network_calls(self) -> int:
        """Of this signal: network calls per posterior sample, of all blocks, alone or in one batch with others."""
        return self._counts.network_calls

    def process(self, chunk: Audio, video: Any = None) -> Audio:
        """Feed a chunk (n,) or (channels, n), n >= 0; returns what is ready, in the same form.

        NaN and infinite samples are taken for silence: a live stream goes on.

        Args:
            video: of audio-visual priors, the frames that came with the chunk, see `VideoTrack.append`. They must not
                come later than the sound: a block is enhanced with what is there when its sound is complete.

        Raises:
            UdseError: another shape, or another dtype or kind than the chunks before.
        """
        return self.separate(chunk, video)[0]

    def separate(self, chunk: Audio, video: Any = None) -> tuple[Audio, Audio]:
        """`process` with the noise as well: what was taken away from the input."""
        with self._lock:
            checked = self._checked(chunk)
            self.see(video)
            self._receive(*checked)
            advance([self])
            return self._taken()

    def see(self, video: Any) -> None:
        """Take frames of the video that come next; None are none."""
        if video is None:
            return
        if self.track is None:
            raise UdseError(
                "video: expected none with a prior that only hears, got one; give an audio-visual checkpoint"
            )
        self.track.append(video)

    def flush(self) -> Any:
        """The rest of the signal; afterwards the stream starts anew."""
        return self.flush_separate()[0]

    def flush_separate(self) -> tuple[Any, Any]:
        """`flush` with the noise as well."""
        with self._lock:
            return flush_together([self])[0]

    def _checked(self, chunk: Any) -> tuple[AudioFormat, Samples]:
        """Form and samples (channels, n) of a chunk; nothing has happened where it is refused."""
        audio_format = AudioFormat.of(chunk, "chunk", self.channels)
        if self._format is not None and audio_format != self._format:
            raise UdseError(
                f"chunk: expected chunks like the first, {self._format}, got {audio_format}; "
                "reset() starts a new signal"
            )
        samples = np.nan_to_num(audio_format.to_float(chunk), nan=0.0, posinf=0.0, neginf=0.0)
        if samples.shape[0] != self.channels:
            raise UdseError(f"chunk: expected {self.channels} channels, got the shape {tuple(chunk.shape)}")
        return audio_format, samples

    def _receive(self, audio_format: AudioFormat, samples: Samples) -> None:
        if self._format is None:
            self._counts = Counts()
        self._format = self._latest_format = audio_format
        self._counts.received += samples.shape[1]
        self._push(samples)

    def _push(self, samples: Samples) -> None:
        """Samples (channels, n) that come next."""
        for channel, row in zip(self._channels, samples, strict=True):
            channel.push(row)

    @staticmethod
    def _work(streams: Sequence[Any]) -> None:
        """Enhance what is there of streams of this kind, see `advance`."""
        while due := [(stream, blocks) for stream in streams for blocks in stream._due()]:
            results = enhance_blocks([(stream.enhancer, blocks) for stream, blocks in due])
            for (stream, blocks), enhanced in zip(due, results, strict=True):
                stream._accept(blocks, enhanced)

    def _end(self) -> None:
        """No more samples come."""
        for channel in self._channels:
            channel.end()

    def _finish(self) -> None:
        """Make what is left after the end ready, when no block is due."""
        for channel in self._channels:
            channel.finish()

    def _due(self) -> list[tuple[Block[Any], ...]]:
        """The blocks that can be enhanced now, of all channels, which are always at the same place."""
        return list(zip(*(channel.blocks.due() for channel in self._channels), strict=True))

    def _accept(self, blocks: Sequence[Block[Any]], results: Sequence[Enhanced[Any]]) -> None:
        for channel, block, enhanced in zip(self._channels, blocks, results, strict=True):
            channel.accept(block, enhanced)
            self._counts.network_calls += enhanced.network_calls
            if enhanced.diverged:
                self._note_fallbacks(self.fallbacks + 1)

    def _taken(self) -> tuple[Any, Any]:
        """What is ready, in the form in which it came."""
        speech, noise = (np.stack(rows) for rows in zip(*(channel.take() for channel in self._channels), strict=True))
        return self._latest_format.from_float(speech), self._latest_format.from_float(noise)

    def state(self) -> dict[str, Any]:
        """A copy of everything that the samples to come depend on: a dict of tensors, numbers and lists.

        `torch.save` writes it and `torch.load` reads it; `restore` of a stream that was opened
        with the same settings, of an Enhancer with the same prior, goes on from it.
        """
        with self._lock:
            return stored(self._facts(), self._content())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, bit for bit as the stream that it was taken from.

        Raises:
            UdseError: not a state, a damaged one, or that of a stream with other settings; this stream is as before.
        """
        with self._lock:
            self._go_on_from(checked_content(state, self._facts()))

    def _facts(self) -> dict[str, Any]:
        """What a state belongs to."""
        own = {
            "version": STATE_VERSION,
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "max_attenuation_db": self.max_attenuation_db,
            **({} if self.track is None else {"video_rate": self.track.rate}),
            **self._block_facts(),
        }
        return own | {name: value for name, value in self.enhancer.facts().items() if name != "block_frames"}

    def _block_facts(self) -> dict[str, Any]:
        return self._channels[0].blocks.facts

    def _note_fallbacks(self, count: int) -> None:
        """So many of this signal so far; the first one is worth a word."""
        if count and not self.fallbacks:
            warnings.warn(_FALL_BACK.format(self.enhancer.model.sampler), RuntimeWarning, stacklevel=5)
        self._counts.fallbacks = count

    def _content(self) -> dict[str, Any]:
        return {
            "channels": [channel.state() for channel in self._channels],
            "format": None if self._format is None else asdict(self._format),
            **({} if self.track is None else {"video": self.track.state()}),
        }

    def _go_on_from(self, content: dict[str, Any]) -> None:
        channels = self._new_channels()
        for channel, kept in zip(channels, content["channels"], strict=True):
            channel.restore(kept)
        self._channels = channels
        if self.track is not None:
            self.track.restore(content["video"])
        self._format = None if content["format"] is None else AudioFormat(**content["format"])


def advance(streams: Sequence[Stream]) -> None:
    """Enhance the blocks that are due in any of the streams, until none is; each round is one batch of network calls.

    Results are accepted when all of a round are there. If one fails, all streams are as they were before the round.
    """
    started = time.perf_counter()
    try:
        for kind in dict.fromkeys(type(stream) for stream in streams):
            kind._work([stream for stream in streams if type(stream) is kind])
    finally:
        for stream in streams:
            stream._counts.last_seconds = time.perf_counter() - started
            stream._counts.busy_seconds += stream._counts.last_seconds


def flush_together(streams: Sequence[Stream]) -> list[tuple[Any, Any]]:
    """`flush_separate` of every stream, network calls of the same network as one batch.

    If one fails, all of them are as they were before.
    """
    before = [copy.deepcopy(stream._content()) for stream in streams]
    try:
        running = [stream for stream in streams if stream._format is not None]  # in others nothing came
        for stream in running:
            stream._end()
        advance(running)
        for stream in running:
            stream._finish()
    except BaseException:
        for stream, content in zip(streams, before, strict=True):
            stream._go_on_from(content)
        raise
    rest = [stream._taken() for stream in streams]
    for stream in streams:
        stream._start_anew()
    return rest


def separate_together(streams: Sequence[Stream], chunks: Sequence[Any]) -> list[tuple[Any, Any]]:
    """`separate` of every stream with its chunk, network calls of the same network as one batch.

    Raises:
        UdseError: as many streams as chunks are expected, each stream once; what `separate` raises.
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
        for stream, (audio_format, samples) in zip(streams, checked, strict=True):
            stream._receive(audio_format, samples)
        advance(streams)
        return [stream._taken() for stream in streams]


def process_together(streams: Sequence[Stream], chunks: Sequence[Audio]) -> list[Audio]:
    """`process` of every stream with its chunk, see `separate_together`."""
    return [speech for speech, _ in separate_together(streams, chunks)]
