"""Beside a busy process on every core: `python benchmarks/neighbours.py > results/neighbours.md`.

Real-time factors with the machine to itself and beside as many processes that compute without a pause as there are
cores, in turns, in one run. Each then has half of a core: a factor of 2 is a fair share, more is time lost by waiting.
"""

from __future__ import annotations

import argparse
import importlib.resources
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import soundfile
import torch

import udse_fast
from udse_fast.commands.info import processor

RATE = 16000
CHUNK = RATE // 50


def _compute() -> None:
    while True:
        pass


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many busy processes."""
    processes = [multiprocessing.get_context("spawn").Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(2 if count else 0)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def cases(audio: np.ndarray, precision: str) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    enhancer = udse_fast.Enhancer(precision=precision, device="cpu")
    amortised = udse_fast.Enhancer("posterior", precision=precision, device="cpu")

    def streamed(**settings: bool) -> Callable[[], object]:
        def run() -> None:
            stream = enhancer.open_stream(RATE, **settings)
            for at in range(0, len(audio), CHUNK):
                stream.process(audio[at : at + CHUNK])
            stream.flush()

        return run

    return {
        "whole signal": lambda: enhancer.enhance(audio, RATE),
        "whole signal, `amortised`": lambda: amortised.enhance(audio, RATE),
        "causal stream": streamed(causal=True),
        "stream of overlapping blocks": streamed(causal=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seconds", type=float, help="of audio, the example again and again (default: as it is)")
    arguments = parser.parse_args()
    with importlib.resources.as_file(importlib.resources.files("udse_fast") / "examples/noisy.flac") as path:
        audio = np.asarray(soundfile.read(path, dtype="float32")[0])
    if arguments.seconds:
        audio = np.resize(audio, round(arguments.seconds * RATE))
    cores = len(os.sched_getaffinity(0))
    print("# Beside a busy neighbour\n")
    print(f"`python benchmarks/neighbours.py --precision {arguments.precision}`: {processor()}, {cores} cores,")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.precision}. Beside {cores} busy")
    seconds = f"{len(audio) / RATE:.0f} s of audio"
    print(f"processes. Real-time factors by the clock on the wall, each the median of {arguments.repeats} times")
    print(f"{seconds}.\n")
    print("| what | alone | beside | ratio |\n| --- | --- | --- | --- |")
    for name, run in cases(audio, arguments.precision).items():
        run()  # one-time costs
        factors: dict[int, list[float]] = {0: [], cores: []}
        for _ in range(arguments.repeats):
            for count, times in factors.items():
                with neighbours(count):
                    start = time.perf_counter()
                    run()
                    times.append((time.perf_counter() - start) / (len(audio) / RATE))
        alone, beside = (float(np.median(times)) for times in factors.values())
        print(f"| {name} | {alone:.3f} | {beside:.3f} | {beside / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
