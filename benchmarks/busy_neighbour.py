"""Speed beside other work: `python benchmarks/busy_neighbour.py >> results/native.md`.

A stream and a whole signal, alone and with a process on every core that never rests, in turn. A fair share of a core is
half of it, so a ratio of 2 is what the scheduler leaves. On a machine that is not idle the first number is not "alone":
the load average is printed with it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import soundfile

import udse_fast
from udse_fast.commands.info import processor
from udse_fast.commands.workers import cores

RATE = 16000


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def streamed(enhancer: udse_fast.Enhancer, audio: np.ndarray) -> None:
    """In chunks of 10 ms."""
    stream = enhancer.open_stream(RATE)
    for at in range(0, len(audio), RATE // 100):
        stream.process(audio[at : at + RATE // 100])


def seconds(work: Callable[[], object]) -> float:
    """That it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alone and beside, in turn (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="whole signals too")
    arguments = parser.parse_args()
    with importlib.resources.as_file(importlib.resources.files("udse_fast") / "examples" / "noisy.flac") as path:
        recording, _ = soundfile.read(path, dtype="float32")
    audio = np.resize(recording, 8 * RATE)
    enhancer = udse_fast.Enhancer()
    rows: dict[str, Callable[[], object]] = {"causal stream": lambda: streamed(enhancer, audio)}
    if arguments.whole:
        rows["whole signal of 8 s"] = lambda: enhancer.enhance(audio, RATE)
    print(f"\n## Beside a busy process on each of {cores()} cores\n")
    load = os.getloadavg()[0]
    print(f"Made with `python benchmarks/busy_neighbour.py`: {processor()}; load average at the start {load:.1f}.\n")
    print("| what | real-time factor, alone | beside | ratio |\n| --- | --- | --- | --- |")
    for name, work in rows.items():
        work()  # one-time costs
        alone, beside = [], []
        for _ in range(arguments.rounds):
            alone.append(seconds(work))
            with busy(cores()):
                beside.append(seconds(work))
        factors = [float(np.median(times)) * RATE / len(audio) for times in (alone, beside)]
        print(f"| {name} | {factors[0]:.2f} | {factors[1]:.2f} | {factors[1] / factors[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
