"""Hashes of what every sampler makes of the shipped example: whole, causal and as streams.

`python benchmarks/output_hashes.py record.json` writes them, with the outputs beside them (`record.npz`);
`python benchmarks/output_hashes.py --against record.json` compares: equal hashes are equal to the bit, and for others
the largest difference relative to the largest sample is printed. Hashes are comparable on one machine with one version
of torch: others round differently. Float32, one thread, built-in priors, default settings with the steps cut to 8.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

import udse_fast

RATE = 16000
STEPS = 8
CHUNK = 1000
SECONDS = 3.0


def streamed(stream: udse_fast.Stream, audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Speech of a stream that is fed with chunks."""
    chunks = [stream.process(audio[at : at + CHUNK]) for at in range(0, len(audio), CHUNK)]
    return np.concatenate([*chunks, stream.flush()])


def outputs(audio: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Speech by case: sampler, then the way the signal took."""
    results: dict[str, NDArray[np.float32]] = {}
    for sampler in udse_fast.sampler_names():
        if sampler in ("prior", "sgmse"):  # they have no built-in network for recordings
            continue
        enhancer = udse_fast.Enhancer(
            sampler=sampler, steps=STEPS, precision="float32", device="cpu", corrector_snr=0.2
        )
        if sampler == "paradiffuse_in":  # diverges with few steps
            enhancer = udse_fast.Enhancer(sampler=sampler, precision="float32", device="cpu")
        results[f"{sampler} whole"] = enhancer.enhance(audio, RATE)
        if not sampler.startswith("paradiffuse"):
            results[f"{sampler} causal"] = enhancer.enhance(audio, RATE, causal=True)
            results[f"{sampler} causal stream"] = streamed(enhancer.open_stream(RATE), audio)
        results[f"{sampler} overlapping stream"] = streamed(enhancer.open_stream(RATE, causal=False), audio)
        print(sampler, file=sys.stderr, flush=True)
    enhancer = udse_fast.Enhancer(precision="float32", device="cpu", sampler="ddrm")
    results["ddrm as shipped"] = enhancer.enhance(audio, RATE)
    results["ddrm as shipped, causal"] = enhancer.enhance(audio, RATE, causal=True)
    stereo = (np.stack([audio, audio[::-1]])[:, : 2 * RATE] * 32767).astype(np.int16)
    results["ddrm 44.1 kHz, stereo, int16"] = enhancer.enhance(stereo, 44100).astype(np.float32)
    return results


def main() -> None:
    """Record, or compare with a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="?")
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    noisy = Path(udse_fast.__file__).parent / "examples/noisy.flac"
    audio, _ = soundfile.read(str(noisy), dtype="float32")
    found = outputs(audio[: int(SECONDS * RATE)])
    hashes = {name: hashlib.sha256(out.tobytes()).hexdigest() for name, out in found.items()}
    if arguments.record:
        facts = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        arguments.record.write_text(json.dumps({**facts, "sha256": hashes}, indent=1))
        np.savez_compressed(arguments.record.with_suffix(".npz"), **{n.replace(" ", "_"): o for n, o in found.items()})
    if arguments.against:
        before = json.loads(arguments.against.read_text())["sha256"]
        kept = np.load(arguments.against.with_suffix(".npz"))
        for name, value in hashes.items():
            old = kept[name.replace(" ", "_")]
            apart = np.abs(found[name] - old).max() / np.abs(old).max()
            print(f"{name:40} {'equal' if value == before[name] else f'differs by {apart:.1e}'}")


if __name__ == "__main__":
    main()
