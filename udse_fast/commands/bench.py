"""`udse-fast bench`: how fast a prior and sampler run on this machine, and where the time goes."""

from __future__ import annotations

import argparse
import importlib.resources
import json
import statistics
import time
from typing import Any

from udse_fast.commands.options import add_enhancer_arguments, enhancer_settings
from udse_fast.commands.stream import add_block_arguments
from udse_fast.errors import UdseError


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
    from udse_fast.sde import Time

    class TimedEnhancer(Enhancer):
        """Knows how long its network took."""

        network_seconds = 0.0
        network_calls = 0

        def score(self, state: torch.Tensor, time_: Time, source: str) -> torch.Tensor:
            started = self.clock()
            score = super().score(state, time_, source)
            self.network_seconds += self.clock() - started
            self.network_calls += 1
            return score

        def clock(self) -> float:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter()

    enhancer = TimedEnhancer(**enhancer_settings(arguments))
    rate = enhancer.spectral.sample_rate
    example = importlib.resources.files("udse_fast") / "examples" / "noisy.flac"
    with importlib.resources.as_file(example) as path:
        recording, _ = soundfile.read(path, dtype="float32")
    audio = np.resize(recording, max(1, round(arguments.seconds * rate)))
    seconds = len(audio) / rate

    enhancer.enhance(audio[: 2 * rate], rate)
    enhancer.network_seconds, enhancer.network_calls = 0.0, 0
    walls = []
    for _ in range(arguments.runs):
        started = enhancer.clock()
        enhancer.enhance(audio, rate)
        walls.append(enhancer.clock() - started)
    calls, network_seconds = enhancer.network_calls, enhancer.network_seconds
    stream = enhancer.open_stream(
        rate, block_seconds=arguments.block_seconds, overlap_seconds=arguments.overlap_seconds
    )
    block_seconds = []
    for chunk in np.split(audio, range(rate // 10, len(audio), rate // 10)):
        started = time.perf_counter()
        if len(stream.process(chunk)):
            block_seconds.append(time.perf_counter() - started)
    streamed = stream.real_time_factor if block_seconds else float("nan")
    stream.flush()

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
        "network calls a run": calls // arguments.runs,
        "milliseconds a network call": 1000 * network_seconds / calls if calls else 0.0,
        "share of the network": network_seconds / sum(walls),
        "stream: latency seconds": stream.latency_seconds,
        "stream: real-time factor": streamed,
        "stream: slowest block seconds": max(block_seconds, default=float("nan")),
    }
