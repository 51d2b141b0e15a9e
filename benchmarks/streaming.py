"""Latency and speed of causal streams with the built-in prior: `python benchmarks/streaming.py > results/streaming.md`.

A table by block length, and the default settings over ten minutes: every block's computing time against its hop, as the
caller of `Stream.process` sees it with chunks of 10 ms. Then memory over hours of audio, with one step and one sample:
what is kept from block to block does not depend on them, but its time does.
"""

from __future__ import annotations

import argparse
import importlib.resources
import resource

import numpy as np
import soundfile
import torch

import udse_fast
from udse_fast.commands.info import processor

RATE = 16000
CHUNK = RATE // 100
COLUMNS = (
    "frames a block", "steps", "samples", "latency, ms", "audio, s", "real-time factor", "block, ms",
    "computing, ms: median", "95 %", "99.9 %", "95 % / block",
)  # fmt: skip


def measured(enhancer: udse_fast.Enhancer, audio: np.ndarray, **settings: int) -> str:
    """A row of the table."""
    stream = enhancer.open_stream(RATE, **settings)
    stream.process(audio[: 2 * RATE])  # one-time costs
    stream.reset()
    times, ready = [], []
    for at in range(0, len(audio), CHUNK):
        out = len(stream.process(audio[at : at + CHUNK]))
        if out:
            times.append(1000 * stream.last_seconds)
            ready.append(out)
    block = 1000 * max(ready) / RATE
    median, slow, slowest = np.quantile(times, [0.5, 0.95, 0.999])
    frames = settings.get("block_frames", round(block * RATE / 1000 / 255))
    chosen = stream.settings
    values = [
        frames, chosen.steps, chosen.samples, f"{1000 * stream.latency_seconds:.1f}", f"{len(audio) / RATE:.0f}",
        f"{stream.real_time_factor:.2f}", f"{block:.1f}", f"{median:.1f}", f"{slow:.1f}", f"{slowest:.1f}",
        f"{slow / block:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, values))} |"


def peak_memory() -> float:
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def soak(enhancer: udse_fast.Enhancer, recording: np.ndarray, hours: float) -> str:
    """Memory over hours of audio."""
    stream = enhancer.open_stream(RATE, steps=1, samples=1)
    before = 0.0
    for second in range(round(3600 * hours)):
        stream.process(np.roll(recording, -second * RATE)[:RATE])
        before = before if second > 600 else peak_memory()
    return (
        f"{hours:g} hours in chunks of 1 s, one step and one sample: "
        f"memory grew by {peak_memory() - before:.1f} MiB after the first ten minutes."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of the long run (default: %(default)s)")
    parser.add_argument("--short", type=float, default=20, help="seconds of the others (default: %(default)s)")
    parser.add_argument("--soak-hours", type=float, default=10, help="of audio (default: %(default)s; 0: none)")
    arguments = parser.parse_args()
    example = importlib.resources.files("udse_fast") / "examples" / "noisy.flac"
    with importlib.resources.as_file(example) as path:
        recording, _ = soundfile.read(path, dtype="float32")
    short, long = (np.resize(recording, round(s * RATE)) for s in (arguments.short, arguments.seconds))
    enhancer = udse_fast.Enhancer()
    versions = f"{torch.get_num_threads()} threads, torch {torch.__version__}, version {udse_fast.__version__}"
    print(f"# Causal streams\n\nMade with `python benchmarks/streaming.py`: {processor()}, {versions}.\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for frames in (1, 2, 3, 4):
        print(measured(enhancer, short, block_frames=frames), flush=True)
    for frames, steps, samples in ((2, 6, 1), (2, 3, 1), (3, 6, 1), (2, 12, 2)):
        print(measured(enhancer, short, block_frames=frames, steps=steps, samples=samples), flush=True)
    before = peak_memory()
    print(measured(enhancer, long))
    grown = peak_memory() - before
    print(
        f"\nThe last row is the default over {arguments.seconds:g} s; memory grew by {grown:.1f} MiB in it.", flush=True
    )
    if arguments.soak_hours:
        print(f"\n{soak(enhancer, recording, arguments.soak_hours)}")


if __name__ == "__main__":
    main()
