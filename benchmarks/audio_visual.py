#!/usr/bin/env python3
"""What seeing the lips brings: mixtures enhanced with the true video, with a wrong one, and without.

usage: audio_visual.py MIXTURES CHECKPOINT ROWS.csv [--snr -5] [--most 30] [--steps N] [--samples B] > PAGE.md

MIXTURES holds SET/snrN/{clean,noisy}/NAME.wav. The videos are synthetic lips, drawn from the clean speech of the same
utterance (true) or of another one (wrong); no real face is seen.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import udse_fast
from udse_fast.audio.files import read_audio
from udse_fast.commands.info import processor
from udse_fast.evaluation.metrics import estoi, si_sdr
from udse_fast.evaluation.pairs import Pair, pairs_in_mixtures
from udse_fast.evaluation.synthetic_lips import draw_mouths

RATE = 16000
SYSTEMS = ("noisy", "no video", "wrong video", "true video")
Signal = NDArray[np.float32]


def mono(path: Path) -> Signal:
    """(L,), at 16 kHz."""
    audio, rate = read_audio(path)
    assert rate == RATE, path
    return np.ascontiguousarray(audio[:, 0])


def lips(speech: Signal, utterance: str) -> NDArray[np.uint8]:
    """The mouth that says it; its face goes by the utterance."""
    return draw_mouths(speech, RATE, zlib.crc32(utterance.encode()))


def scores(pair: Pair, other: Pair, seeing: udse_fast.Enhancer) -> dict[str, tuple[float, float]]:
    """(SI-SDR, ESTOI) of every system on one mixture."""
    clean, noisy = mono(pair.clean), mono(pair.noisy)
    results = {
        "noisy": noisy,
        "no video": seeing.enhance(noisy, RATE),
        "wrong video": seeing.enhance(noisy, RATE, video=lips(mono(other.clean), other.utterance)),
        "true video": seeing.enhance(noisy, RATE, video=lips(clean, pair.utterance)),
    }
    return {name: (si_sdr(clean, result), estoi(clean, result)) for name, result in results.items()}


def scored(rows: Path, pairs: list[Pair], seeing: udse_fast.Enhancer) -> dict[str, NDArray[np.float64]]:
    """Scores (mixtures, 2) of every system; those that the table of an earlier run has are taken from it."""
    done: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    if rows.exists():
        with rows.open(newline="") as file:
            for row in csv.DictReader(file):
                done[row["set"], row["utterance"]][row["system"]] = float(row["si_sdr"]), float(row["estoi"])
    utterances = list({pair.utterance: pair for pair in pairs}.values())
    with rows.open("a", newline="") as file:
        table = csv.writer(file)
        if not done:
            table.writerow(["system", "set", "snr", "utterance", "si_sdr", "estoi"])
        for pair in pairs:
            key = pair.set, pair.utterance
            if key not in done:
                place = [known.utterance for known in utterances].index(pair.utterance)
                done[key] = scores(pair, utterances[(place + 1) % len(utterances)], seeing)
                table.writerows([name, pair.set, pair.snr, pair.utterance, *done[key][name]] for name in SYSTEMS)
                file.flush()
    return {name: np.array([done[pair.set, pair.utterance][name] for pair in pairs]) for name in SYSTEMS}


def page(values: dict[str, NDArray[np.float64]], snr: str, seeing: udse_fast.Enhancer) -> str:
    """What the scores say."""
    facts = seeing.network.config["training"]
    count = len(values["noisy"])
    lines = [
        "# Lips\n\nWhat seeing a mouth brings, on drawn mouths that say what the clean speech says: no real face was\n"
        "used, and nothing here says what faces would bring. Wrong: the mouth of another utterance. Made by\n"
        "`benchmarks/audio_visual.sh SPEECH VALID MIXTURES OUT`.\n",
        f"{count} mixtures at {snr} dB, {seeing.sampler} with {seeing.settings.steps} steps and "
        f"{seeing.settings.samples} sample{'s' * (seeing.settings.samples > 1)}, "
        f"{processor()}, torch {torch.__version__}.\n"
        f"The prior: {facts.get('steps')} steps of {facts.get('batch_size')} crops of {facts.get('crop_seconds')} s, "
        f"from the built-in speech prior on, which stayed frozen, with {facts.get('speech_hours')} h of speech.\n",
        "Mean and standard error over mixtures:\n\n| system | SI-SDR, dB | ESTOI |\n| --- | --- | --- |",
    ]
    for name in SYSTEMS:
        mean, error = values[name].mean(0), values[name].std(0, ddof=1) / np.sqrt(count)
        lines.append(f"| {name} | {mean[0]:.2f} ± {error[0]:.2f} | {mean[1]:.3f} ± {error[1]:.3f} |")
    lines.append(
        "\n| true video over | SI-SDR, dB (95 %) | ESTOI (95 %) | better in SI-SDR |\n| --- | --- | --- | --- |"
    )
    for name in SYSTEMS[1:-1]:
        gain = values["true video"] - values[name]
        half = 1.96 * gain.std(0, ddof=1) / np.sqrt(count)
        better = f"{int((gain[:, 0] > 0).sum())} of {count}"
        sdr, intelligible = (f"{m:+.{d}f} ± {h:.{d}f}" for m, h, d in zip(gain.mean(0), half, (2, 3), strict=True))
        lines.append(f"| {name} | {sdr} | {intelligible} | {better} |")
    return "\n".join(lines)


def main() -> None:
    """Enhance, score, print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixtures", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("rows", type=Path, metavar="ROWS.csv", help="scores by mixture; a run that was cut goes on")
    parser.add_argument("--snr", default="-5")
    parser.add_argument("--most", type=int, default=30, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="reverse steps (default: the prior's)")
    parser.add_argument("--samples", type=int, metavar="B", help="posterior samples (default: the prior's)")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    pairs = [pair for pair in pairs_in_mixtures(arguments.mixtures) if pair.snr == arguments.snr]
    pairs.sort(key=lambda pair: (pair.utterance, pair.set))  # so that part of them is of both sets
    seeing = udse_fast.Enhancer(
        arguments.checkpoint, steps=arguments.steps, samples=arguments.samples, precision=arguments.precision
    )
    print(page(scored(arguments.rows, pairs[: arguments.most], seeing), arguments.snr, seeing))


if __name__ == "__main__":
    main()
