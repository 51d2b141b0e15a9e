"""Two talkers in noise: what `Separator` makes of mixtures, its cost, and what knowing the talkers is worth.

    python benchmarks/separation.py OUT.csv --data DATA [--enhanced] [--set NAME=VALUE ...]
    python benchmarks/separation.py OUT.csv --data DATA --lips own|swapped --prior AV.safetensors AV.safetensors
    python benchmarks/separation.py OUT.csv --talkers A.txt B.txt --noise DIR [--prior A.safetensors B.safetensors]

DATA/clean, DATA/noise_matched and DATA/noise_mismatched hold recordings at 16 kHz; a noise is called as its recording.
Recording i of the first half of DATA/clean is mixed with recording i of the second half, which is as loud within
2.5 dB, and, by turns, with its matched or mismatched noise, 5 dB below both. With --talkers (lists of paths, one a
line) and --noise the first talker is of one list, the second of the other.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import udse_fast
from udse_fast.evaluation.metrics import SAMPLE_RATE, si_sdr
from udse_fast.evaluation.pairs import read_audio
from udse_fast.evaluation.synthetic_lips import draw_mouths
from udse_fast.evaluation.talkers import improvements, in_true_order

Signal = NDArray[np.float64]
LEVEL_DB, SNR_DB, PIECE_SECONDS = 2.5, 5.0, 0.5


@dataclass(frozen=True)
class Mixture:
    """Talkers (2, L) and noise (L,)."""

    name: str
    noise_set: str
    talkers: Signal
    noise: Signal

    @property
    def sum(self) -> Signal:
        """What is heard, (L,)."""
        total: Signal = self.talkers.sum(0) + self.noise
        return total


def mixed(name: str, noise_set: str, paths: tuple[Path, Path, Path], level_db: float, seconds: float) -> Mixture:
    """Both talkers and the noise, cut to the shortest of the three, and to some seconds."""
    first, second, noise = (read_audio(path) for path in paths)
    length = min(len(first), len(second), len(noise), round(seconds * SAMPLE_RATE))
    first, second, noise = first[:length], second[:length], noise[:length]
    second = second * np.sqrt(first @ first / (second @ second)) * 10 ** (level_db / 20)
    both = first + second
    noise = noise * np.sqrt(both @ both / (noise @ noise)) * 10 ** (-SNR_DB / 20)
    scale = 0.9 / np.abs(both + noise).max()
    return Mixture(name, noise_set, scale * np.stack([first, second]), scale * noise)


def of_evaluation(data: Path, seconds: float) -> Iterator[Mixture]:
    """Half as many mixtures as recordings."""
    rng = np.random.default_rng(0)
    recordings = sorted((data / "clean").iterdir())
    half = len(recordings) // 2
    for number, (first, second) in enumerate(zip(recordings[:half], recordings[half:], strict=False)):
        noise_set = ("matched", "mismatched")[number % 2]
        noise = next((data / f"noise_{noise_set}").glob(f"{first.stem}*"))
        yield mixed(
            f"{first.stem}+{second.stem}", noise_set, (first, second, noise), rng.uniform(-LEVEL_DB, LEVEL_DB), seconds
        )


def of_lists(first: Path, second: Path, noises: Path, seconds: float) -> Iterator[Mixture]:
    """As many mixtures as the shorter list has recordings."""
    rng = np.random.default_rng(0)
    noise_files = sorted(path for path in noises.iterdir() if path.is_file())
    lists = [[Path(line) for line in path.read_text().split()] for path in (first, second)]
    for number, (a, b) in enumerate(zip(*lists, strict=False)):
        shortest = min(len(read_audio(a)), len(read_audio(b)))
        long = (path for path in np.roll(np.array(noise_files), -17 * number) if len(read_audio(path)) >= shortest)
        yield mixed(
            f"{a.stem}+{b.stem}", f"noise {number}", (a, b, next(long)), rng.uniform(-LEVEL_DB, LEVEL_DB), seconds
        )


def lips(mixture: Mixture, whose: str) -> dict[str, NDArray[np.uint8]]:
    """Drawn mouths that say what the talker says ("own"), what the other one says ("swapped"), or no video ("none")."""
    if whose == "none":
        return {}
    drawn = [draw_mouths(talker, SAMPLE_RATE, seed) for seed, talker in enumerate(mixture.talkers)]
    return dict(zip(("first", "second"), drawn if whose == "own" else drawn[::-1], strict=True))


def scored(system: str, mixture: Mixture, found: list[Signal], seconds: float) -> dict[str, Any]:
    """A row of the table."""
    gains = improvements(mixture.talkers, found, mixture.sum)
    named = [si_sdr(talker, estimate) - si_sdr(talker, mixture.sum)
             for talker, estimate in zip(mixture.talkers, found, strict=True)]  # fmt: skip
    pieces = in_true_order(mixture.talkers, found, round(PIECE_SECONDS * SAMPLE_RATE))
    length = len(mixture.noise) / SAMPLE_RATE
    return {
        "system": system,
        "mixture": mixture.name,
        "noise": mixture.noise_set,
        "seconds": round(length, 2),
        "talker_1": round(gains[0], 3),
        "talker_2": round(gains[1], 3),
        "as_named": round(float(np.mean(named)), 3),
        "in_true_order": round(float(np.mean(improvements(mixture.talkers, pieces, mixture.sum))), 3),
        "cpu_seconds": round(seconds / length, 3),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Means over mixtures and talkers, with the standard error over mixtures, as lines of a Markdown table."""
    lines = []
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        gain = np.array([(row["talker_1"] + row["talker_2"]) / 2 for row in own])
        worse = [min(row["talker_1"], row["talker_2"]) for row in own]
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
        names = ("as_named", "in_true_order", "cpu_seconds")
        named, order, cpu = (np.mean([row[name] for row in own]) for name in names)
        memory = max(row["memory_mb"] for row in own)
        gains = f"{gain.mean():+.2f} ± {error:.2f} | {np.mean(worse):+.2f} | {named:+.2f} | {order:+.2f}"
        lines.append(f"| {system} | {len(own)} | {gains} | {cpu:.1f} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Score every mixture; rows go to the CSV file as they are done, the means to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT.csv")
    add("--data", type=Path, metavar="DIR")
    add("--talkers", type=Path, nargs=2, metavar="LIST")
    add("--noise", type=Path, metavar="DIR")
    add("--prior", nargs=2, metavar="FILE", help="of each talker's own (default: the built-in prior of speech)")
    add("--lips", choices=["none", "own", "swapped"], default="none", help="drawn mouths, for audio-visual priors")
    add("--name", default="shares")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of Separator")
    add("--enhanced", action="store_true", help="the enhanced mixture as both talkers, too")
    add("--seconds", type=float, default=1000.0, help="of each mixture at most")
    add("--count", type=int, default=1000, help="mixtures at most")
    arguments = parser.parse_args()
    settings = {name: _value(value) for name, value in (text.split("=", 1) for text in arguments.set)}
    priors = arguments.prior or [None, None]
    sources = [udse_fast.Source("first", priors[0]), udse_fast.Source("second", priors[1]), "noise"]
    separator = udse_fast.Separator(sources, **settings)
    enhancer = udse_fast.Enhancer() if arguments.enhanced else None
    mixtures = (
        of_lists(*arguments.talkers, arguments.noise, arguments.seconds)
        if arguments.talkers
        else of_evaluation(arguments.data, arguments.seconds)
    )
    rows: list[dict[str, Any]] = []
    with open(arguments.out, "w", newline="") as file:
        for mixture, _ in zip(mixtures, range(arguments.count), strict=False):
            started = time.process_time()
            sources_found = separator.separate(mixture.sum, SAMPLE_RATE, video=lips(mixture, arguments.lips))
            found = [sources_found["first"], sources_found["second"]]
            new = [scored(arguments.name, mixture, found, time.process_time() - started)]
            if enhancer is not None:
                started = time.process_time()
                speech = enhancer.enhance(mixture.sum, SAMPLE_RATE)
                system = f"{enhancer.sampler}, both alike"
                new.append(scored(system, mixture, [speech, speech], time.process_time() - started))
            table = csv.DictWriter(file, list(new[0]))
            if not rows:
                table.writeheader()
            table.writerows(new)
            file.flush()
            rows += new
            print(f"{len(rows) // len(new)} {mixture.name}: {new[0]}", file=sys.stderr, flush=True)
    print(summary(rows))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
