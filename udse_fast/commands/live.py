"""`udse-fast live`: microphone to loudspeaker or virtual cable, through PortAudio."""

from __future__ import annotations

import argparse
import math
import queue
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from udse_fast.commands.options import add_enhancer_arguments
from udse_fast.commands.stream import add_block_arguments, open_block_stream
from udse_fast.errors import UdseError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from udse_fast.streaming.stream import Stream

DISPLAY_SECONDS = 0.2
FLOOR_DB = -60.0
BACKLOG_SECONDS = 4.0
METER_WIDTH = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--list", action="store_true", help="list the audio devices and leave")
    add("--input", metavar="DEVICE", help="number or part of the name (default: the system's)")
    add("--output", metavar="DEVICE", help="number or part of the name, e.g. of a virtual cable")
    add("--rate", type=int, default=16000, metavar="HZ", help="sample rate of both (default: %(default)s)")
    add("--channels", type=int, default=1, metavar="N", help="of both (default: %(default)s)")
    add("--buffer-seconds", type=float, default=0.2, metavar="S",
        help="output kept in hand against underruns (default: %(default)s)")  # fmt: skip
    add("--duration", type=float, metavar="S", help="stop after so many seconds (default: at Ctrl-C)")
    add_block_arguments(parser)
    add_enhancer_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Until Ctrl-C."""
    sounddevice = _sounddevice()
    if arguments.list:
        print(sounddevice.query_devices())
        return 0
    if not 0 <= arguments.buffer_seconds <= 60:
        raise UdseError(f"--buffer-seconds: expected 0 to 60, got {arguments.buffer_seconds}")
    stream = open_block_stream(arguments)
    bridge = Bridge(stream, arguments.buffer_seconds)
    latency = stream.latency_seconds + arguments.buffer_seconds
    stop_at = math.inf if arguments.duration is None else time.monotonic() + arguments.duration
    try:
        with (
            sounddevice.Stream(
                samplerate=arguments.rate,
                channels=arguments.channels,
                dtype="float32",
                device=(_device(arguments.input), _device(arguments.output)),
                callback=bridge.callback,
            ),
            bridge,
        ):
            print(f"latency {latency:.2f} s and computing time; Ctrl-C ends", file=sys.stderr)
            while time.monotonic() < stop_at:
                time.sleep(min(DISPLAY_SECONDS, max(0.0, stop_at - time.monotonic())))
                bridge.check()
                print(f"\r{bridge.status()}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass  # the way to end it
    except UdseError:
        raise
    except (sounddevice.PortAudioError, ValueError) as error:  # ValueError: no device of that name
        raise UdseError(f"cannot use the audio devices ({error}); udse-fast live --list shows what there is") from None
    print(
        f"\n{bridge.underruns} underruns, {bridge.overruns} overruns, real-time factor {bridge.load:.2f}",
        file=sys.stderr,
    )
    return 0


class Bridge:
    """Between the device's callback, which may never wait, and the stream, which computes in bursts.

    The callback puts what it hears into a queue and takes what is ready; a thread does the rest. Output
    starts with the first block and the buffer in hand; where it runs dry, silence is played: an underrun.
    Where the thread falls behind by `BACKLOG_SECONDS`, what is heard is left out: an overrun.
    """

    def __init__(self, stream: Stream, buffer_seconds: float) -> None:
        self.stream = stream
        self.underruns = self.overruns = 0
        self.levels = [FLOOR_DB, FLOOR_DB]
        self._buffer_samples = round(buffer_seconds * stream.sample_rate)
        self._heard: queue.Queue[NDArray[np.float32] | None] = queue.Queue()
        self._heard_samples = 0
        self._most_heard = round((stream.latency_seconds + BACKLOG_SECONDS) * stream.sample_rate)
        self._ready: deque[NDArray[np.float32]] = deque()
        self._ready_samples = 0
        self._playing = False
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="udse-fast live", daemon=True)

    def __enter__(self) -> Bridge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._heard.put(None)
        self._thread.join(timeout=5)

    def check(self) -> None:
        """Raises what went wrong in the thread."""
        if self._failure is not None:
            raise self._failure

    @property
    def load(self) -> float:
        """Computing time per second of audio."""
        return self.stream.real_time_factor

    def callback(self, heard: NDArray[np.float32], played: NDArray[np.float32], _n: int, _t: Any, status: Any) -> None:
        """PortAudio's: (n, channels) in, (n, channels) to be filled."""
        if self._heard_samples <= self._most_heard:
            with self._lock:
                self._heard_samples += len(heard)
            self._heard.put(heard.T.copy())
        self.overruns += self._heard_samples > self._most_heard or bool(status and status.input_overflow)
        self.levels = [_decibels(heard), self.levels[1]]
        self.underruns += bool(status and status.output_underflow)
        filled = self._take(played)
        if filled < len(played):
            played[filled:] = 0
            self.underruns += self._playing
            self._playing = False  # gather the buffer again
        self.levels[1] = _decibels(played)

    def _take(self, played: NDArray[np.float32]) -> int:
        """Fill from what is ready; returns the number of samples."""
        with self._lock:
            if not self._playing:
                self._playing = self._ready_samples >= max(len(played), self._buffer_samples)
                if not self._playing:
                    return 0
            filled = 0
            while filled < len(played) and self._ready:
                part = self._ready.popleft()
                count = min(part.shape[1], len(played) - filled)
                played[filled : filled + count] = part[:, :count].T
                filled += count
                if count < part.shape[1]:
                    self._ready.appendleft(part[:, count:])
            self._ready_samples -= filled
            return filled

    def _work(self) -> None:
        try:
            while (chunk := self._heard.get()) is not None:
                enhanced = self.stream.process(chunk)
                with self._lock:
                    self._heard_samples -= chunk.shape[1]
                    self._ready.append(enhanced)
                    self._ready_samples += enhanced.shape[1]
        except BaseException as error:
            self._failure = error

    def status(self) -> str:
        """Levels, load, what is in hand, underruns."""
        meters = "  ".join(f"{name} {_meter(level)}" for name, level in zip(("in", "out"), self.levels, strict=True))
        seconds = self._ready_samples / self.stream.sample_rate
        counts = f"underruns {self.underruns} overruns {self.overruns}"
        return f"{meters}  load {self.load:4.0%}  in hand {seconds:5.2f} s  {counts}"


def _decibels(samples: NDArray[np.float32]) -> float:
    peak = float(abs(samples).max()) if samples.size else 0.0
    return max(FLOOR_DB, 20 * math.log10(peak)) if peak > 0 else FLOOR_DB


def _meter(level: float) -> str:
    filled = round(METER_WIDTH * min(1.0, 1 - level / FLOOR_DB))
    return f"|{'=' * filled}{' ' * (METER_WIDTH - filled)}| {level:4.0f} dB"


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdecimal() else name


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise UdseError("live needs the package sounddevice: pip install udse-fast[live]") from None
    except OSError as error:
        raise UdseError(
            f"live needs the PortAudio library ({error}); install it, e.g. apt install libportaudio2"
        ) from None
    return sounddevice
