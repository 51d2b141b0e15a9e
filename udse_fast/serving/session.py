"""One connection: PCM in binary messages in, the enhanced PCM out, in step with what the client can take."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from urllib.parse import parse_qs

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode

from udse_fast.audio.format import check_sample_rate
from udse_fast.audio.pcm import FORMATS
from udse_fast.errors import UdseError
from udse_fast.serving.batcher import Batcher
from udse_fast.serving.inbox import Inbox, Samples
from udse_fast.serving.limits import HIGHEST_RATE, RATE_STEP, Limits, Pace
from udse_fast.serving.metrics import Metrics
from udse_fast.streaming.stream import Stream

WAITING_SECONDS = 1.0
"""Audio that may wait for its turn; what is more stays in the socket."""
TURN_SECONDS = 0.1
"""Audio of a stream that a batch takes at most: one that is behind does not hold up the others."""
AHEAD_SECONDS, SHORT_TURN_SECONDS = 0.1, 0.05
"""A stream whose audio is so far ahead of the clock can wait, and takes shorter turns: the next one of the others is
never far."""
END = "end"
"""The text message of a client that has sent everything."""


class Refused(Exception):
    """The client did what it may not; the connection is closed with the code and the reason."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Wanted:
    """What a client asks for in the address: `/stream?rate=48000&channels=1&format=s16le`."""

    rate: int = 16000
    channels: int = 1
    format: str = "s16le"

    @classmethod
    def read(cls, query: str, limits: Limits) -> Wanted:
        """From the part of the address behind the question mark.

        Raises:
            UdseError: a number that is none, a rate, number of channels or format that is not served.
        """
        given = {name: values[-1] for name, values in parse_qs(query).items()}
        numbers = {}
        for name, default in (("rate", cls.rate), ("channels", cls.channels)):
            text = given.get(name, str(default))
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise UdseError(f"{name}: expected a whole number, got {text[:20]!r}")
            numbers[name] = int(text)
        rate = check_sample_rate(numbers["rate"])
        if rate > HIGHEST_RATE or rate % RATE_STEP:
            raise UdseError(f"rate: expected a multiple of {RATE_STEP} Hz up to {HIGHEST_RATE}, got {rate}")
        if not 1 <= numbers["channels"] <= limits.channels:
            raise UdseError(f"channels: expected 1 to {limits.channels}, got {numbers['channels']}")
        chosen = given.get("format", cls.format)
        if chosen not in FORMATS:
            raise UdseError(f"format: expected one of {', '.join(FORMATS)}, got {chosen[:20]!r}")
        return cls(rate, numbers["channels"], chosen)

    def decode(self, message: bytes) -> Samples:
        """(channels, n) of interleaved PCM.

        Raises:
            Refused: not a whole number of samples of every channel.
        """
        frame = FORMATS[self.format].width * self.channels
        if len(message) % frame:
            raise Refused(
                CloseCode.INVALID_DATA,
                f"expected whole samples, {frame} bytes for all channels, got {len(message)} bytes",
            )
        return FORMATS[self.format].decode(message).reshape(-1, self.channels).T

    def encode(self, samples: Samples) -> bytes:
        """Interleaved PCM of (channels, n), in the dtype that `decode` gives."""
        return FORMATS[self.format].encode(np.ascontiguousarray(samples.T).reshape(-1))


class Session:
    """A client's stream from the first message to the rest, its limits kept."""

    def __init__(
        self,
        connection: ServerConnection,
        wanted: Wanted,
        stream: Stream,
        batcher: Batcher,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.connection, self.wanted, self.stream = connection, wanted, stream
        self._batcher, self._limits, self._metrics = batcher, limits, metrics
        self._inbox = Inbox(round(WAITING_SECONDS * wanted.rate))
        self._reading: asyncio.Task[None] | None = None
        self._draining = False

    def drain(self) -> None:
        """Read no more; what came is enhanced and sent, then the connection is closed."""
        self._draining = True
        if self._reading is not None:
            self._reading.cancel()

    async def run(self) -> None:
        """Until the client is done, has gone, or was refused.

        Raises:
            Refused: close the connection with this.
        """
        await self._send(json.dumps(self._facts()))
        self._reading = asyncio.create_task(self._read())
        if self._draining:
            self._reading.cancel()
        self._reading.add_done_callback(self._after_reading)
        try:
            due = time.monotonic()  # when a client in real time would have sent what was heard
            while (turn := await self._inbox.take(self._most(due))) is not None:
                samples, arrived = turn
                await self._give_out(await self._batcher.process(self.stream, samples, due - AHEAD_SECONDS))
                due = max(due, time.monotonic() - WAITING_SECONDS) + samples.shape[1] / self.wanted.rate
                self._metrics.audio.add(samples.size / self.wanted.rate)
                self._metrics.response.observe(time.monotonic() - arrived)
            if not self._reading.cancelled():
                self._reading.result()  # raises what ended it
            await self._give_out(await self._batcher.flush(self.stream))
        finally:
            self._reading.cancel()
            del self.stream  # megabytes: an error of the connection, its frames and this session hold each other
        if self._draining:
            raise Refused(CloseCode.GOING_AWAY, "the server is going down; this was the rest")

    def _most(self, due: float) -> int:
        """Samples of the next turn."""
        ahead = due - AHEAD_SECONDS > time.monotonic()
        return max(1, round((SHORT_TURN_SECONDS if ahead else TURN_SECONDS) * self.wanted.rate))

    def _facts(self) -> dict[str, object]:
        """The first message, as text: what comes, and how much later."""
        return {
            "rate": self.wanted.rate,
            "channels": self.wanted.channels,
            "format": self.wanted.format,
            "latency_samples": self.stream.latency_samples,
        }

    def _after_reading(self, reading: asyncio.Task[None]) -> None:
        failed = not reading.cancelled() and reading.exception() is not None
        self._inbox.end(discard=failed)

    async def _read(self) -> None:
        """Messages into the inbox, until the client says that it is done."""
        pace = Pace(self._limits.speed, self._limits.burst_seconds)
        while True:
            try:
                message = await asyncio.wait_for(self.connection.recv(), self._limits.idle_seconds)
            except asyncio.TimeoutError:
                reason = f"no message for {self._limits.idle_seconds:g} s"
                raise Refused(CloseCode.POLICY_VIOLATION, reason) from None
            if message == END:
                return
            if isinstance(message, str):
                raise Refused(CloseCode.UNSUPPORTED_DATA, f'expected PCM in binary messages, or the text "{END}"')
            samples = self.wanted.decode(message)
            await self._inbox.put(samples)
            await asyncio.sleep(pace.spend(samples.shape[1] / self.wanted.rate))

    async def _give_out(self, samples: Samples) -> None:
        if samples.shape[1]:
            await self._send(self.wanted.encode(samples))

    async def _send(self, message: str | bytes) -> None:
        """Waits while the client does not read.

        Raises:
            Refused: it did not for `stall_seconds`.
        """
        try:
            await asyncio.wait_for(self.connection.send(message), self._limits.stall_seconds)
        except asyncio.TimeoutError:
            reason = f"results were not read for {self._limits.stall_seconds:g} s"
            raise Refused(CloseCode.POLICY_VIOLATION, reason) from None
