"""`udse-fast bench`: how fast a prior and sampler run on this machine, and where the time goes."""

from __future__ import annotations

import argparse
import functools
import importlib.resources
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from udse_fast.commands.options import add_enhancer_arguments, enhancer_settings
from udse_fast.commands.stream import add_block_arguments, block_settings
from udse_fast.errors import UdseError

if TYPE_CHECKING:
    from udse_fast.enhancer import Enhancer

CALLS_ALONE = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--seconds", type=float, default=8.0, help="of audio: the example, repeated (default: %(default)s)")
    add("--runs", type=int, default=3, metavar="N", help="after one to warm up (default: %(default)s)")
    add("--json", action="store_true", help="the numbers as JSON")
    add_block_arguments(parser)
    add_enhancer_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if not (0.1 <= arguments.seconds <= 3600 and arguments.runs >= 1):
        raise UdseError("expected --seconds from 0.1 to 3600 and --runs of 1 or more")
    results = measure(arguments)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        width = max(map(len, results))
        for name, value in results.items():
            print(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings and measurements, in the order of the table."""
    import numpy as np
    import soundfile
    import torch

    from udse_fast.commands.info import processor
    from udse_fast.enhancer import Enhancer

    enhancer = Enhancer(**enhancer_settings(arguments))
    clock = NetworkClock(enhancer)
    rate = enhancer.spectral.sample_rate
    example = importlib.resources.files("udse_fast") / "examples" / "noisy.flac"
    with importlib.resources.as_file(example) as path:
        recording, _ = soundfile.read(path, dtype="float32")
    audio = np.resize(recording, max(1, round(arguments.seconds * rate)))
    seconds = len(audio) / rate

    whole = enhancer.open_stream(rate, whole_signal=True)
    walls = []
    for _ in range(1 + arguments.runs):  # one-time costs are in the first
        started = clock.start()
        whole.process(audio)
        whole.flush()
        walls.append(clock.now() - started)
    walls = walls[1:]
    calls = whole.network_calls
    network_seconds = clock.network_seconds(calls)
    stream = enhancer.open_stream(rate, **block_settings(arguments))
    stream.process(audio[: 2 * rate])
    stream.reset()
    busy, block_samples = [], 0
    for chunk in np.split(audio, range(rate // 100, len(audio), rate // 100)):
        ready = len(stream.process(chunk))
        if ready:
            busy.append(stream.last_seconds)
            block_samples = max(block_samples, ready)
    hop = block_samples / rate
    slow = float(np.quantile(busy, 0.95)) if busy else math.nan

    config = enhancer.network.config
    network = config["training"].get("network") or config["architecture"]["name"]
    return {
        "machine": processor() if enhancer.device.type == "cpu" else torch.cuda.get_device_name(enhancer.device),
        "threads": torch.get_num_threads(),
        "prior": f"{arguments.checkpoint or 'built-in'} ({network})",
        "precision": enhancer.precision,
        "sampler": enhancer.sampler,
        "steps": enhancer.settings.steps,
        "samples": enhancer.settings.samples,
        "audio seconds": seconds,
        "real-time factor (median)": statistics.median(walls) / seconds,
        "real-time factor (best)": min(walls) / seconds,
        "network calls a run": calls,
        "milliseconds a network call": 1000 * network_seconds / calls,
        "share of the network": network_seconds / walls[-1],
        "stream: latency seconds": stream.latency_seconds,
        "stream: real-time factor": stream.real_time_factor,
        "stream: seconds of a block": hop,
        "stream: computing time of a block, 95th percentile": slow,
        "stream: share of the block that this is": slow / hop if busy else math.nan,
    }


class NetworkClock:
    """How long a call of the network of an Enhancer takes.

    On a CPU, the calls of the last run are timed as they are made. On a GPU they are launched from recorded graphs,
    where nothing can be timed: there, one of the calls that were recorded is made again, alone.
    """

    def __init__(self, enhancer: Enhancer) -> None:
        self._device = enhancer.device
        self._seconds: list[float] = []
        self._last: Callable[[], Any] | None = None
        networks = {enhancer.network, enhancer.noise_network}
        if enhancer.model.posterior_network is not None:
            networks.add(enhancer.model.posterior_network)
        for network in networks:
            network.evaluate = self._timed(network.evaluate)  # type: ignore[method-assign]
            network.say = self._timed(network.say)  # type: ignore[method-assign]

    def start(self) -> float:
        """Begin a run."""
        self._seconds.clear()
        return self.now()

    def now(self) -> float:
        """In seconds, after everything that was asked of the device."""
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def network_seconds(self, calls: int) -> float:
        """Of the last run, which had so many calls."""
        if self._device.type == "cpu":
            return sum(self._seconds)
        assert self._last is not None
        self._seconds.clear()
        for _ in range(CALLS_ALONE):
            self._last()
        return calls * statistics.median(self._seconds)

    def _recording(self) -> bool:
        """Whether the call is being recorded, when nothing may be waited for."""
        if self._device.type == "cpu":
            return False
        import torch

        return torch.cuda.is_current_stream_capturing()

    def _timed(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self._recording():
                return evaluate(*arguments, **keywords)
            self._last = functools.partial(timed, *arguments, **keywords)
            started = self.now()
            result = evaluate(*arguments, **keywords)
            self._seconds.append(self.now() - started)
            return result

        return timed
