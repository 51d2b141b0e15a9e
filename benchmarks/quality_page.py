"""The results page from the scores that quality.sh made: `python benchmarks/quality_page.py OUT [PEERS.csv] > PAGE.md`.

OUT/scores.csv: every system on the mixtures; OUT/after_1s: without the first second; OUT/peers: ours on the utterances
that the scores of others, PEERS.csv, belong to.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

import udse_fast
from udse_fast.commands.info import processor
from udse_fast.evaluation.tables import (
    INTERVAL_NOTE,
    LABELS,
    Interval,
    ScoreRow,
    interval,
    markdown,
    paired_differences,
    read_scores,
    snr_groups,
    unique,
)

DEFAULT, STREAM, NOISY = "amortised_ddrm", "amortised_ddrm (causal)", "noisy"
SHOWN = ("si_sdr", "estoi", "pesq_nb_raw", "dnsmos_ovrl")
CLAIMS = (
    ("An explicit noise estimate helps: DiffUSEEN over UDiffSE+", "diffuseen", "udiffse_plus", ("si_sdr", "estoi")),
    ("and brings fewer artefacts", "diffuseen", "udiffse_plus", ("si_sar",)),
    ("One pass is as good as EM: UDiffSE+ over UDiffSE", "udiffse_plus", "udiffse", ("si_sdr", "estoi")),
    ("Multiplying Gaussians needs no guidance weight: DEPSE-IL over UDiffSE+", "depse_il", "udiffse_plus", ("si_sdr",)),
    ("The Wiener filter helps ParaDiffUSE-EN", "paradiffuse_en", "paradiffuse_en (mean)", ("si_sdr", "pesq_nb_raw")),
    (
        "Explicit over implicit with two scores: ParaDiffUSE-EN over -IN",
        "paradiffuse_en",
        "paradiffuse_in",
        ("si_sdr",),
    ),
    (
        "The noise model is the limit: NMF fitted to the true noise, of the default",
        f"{DEFAULT} (oracle)",
        DEFAULT,
        SHOWN[:2],
    ),
    ("and its periodogram over that", f"{DEFAULT} (pure oracle)", f"{DEFAULT} (oracle)", SHOWN[:2]),
    ("Ours: the default over one without a posterior network", DEFAULT, "ddrm", SHOWN),
    ("Ours: the default over DiffUSEEN", DEFAULT, "diffuseen", SHOWN[:3]),
    ("Ours: the default over UDiffSE+", DEFAULT, "udiffse_plus", SHOWN[:3]),
    ("Ours: the whole signal over the stream", DEFAULT, STREAM, SHOWN),
)
"""What the papers find, and what we claim: a over b in these metrics."""


HEAD = """\
Made with `benchmarks/quality.sh`: udse-fast {}, torch {}, {}. {} mixtures of 15 utterances of unseen speakers at four
SNRs, with noise of kinds that the training noise has ("matched", other recordings) or has not ("mismatched"); the
speech prior has heard no noise. ParaDiffUSE with the joint prior. `amortised_ddrm` is the default,
`amortised_ddrm (causal)` its stream; `(oracle)` and `(pure oracle)` are told the noise. PESQ NB raw is the P.862 scale
of the papers. Where n is smaller, fewer files were scored."""
PEERS_NOTE = """\
Gain over the noisy input. All of them but logmmse and noisereduce_st were trained on pairs of noisy and clean speech,
most on hundreds of hours; their scores are those of the table that was given."""
CLAIMS_NOTE = """\
Differences file by file, mean and half width of the 95 % interval. The published samplers run with the built-in
settings too: with the Wiener filter as read-out they differ less than in their samples."""


def of_system(rows: list[ScoreRow], system: str) -> list[ScoreRow]:
    return [row for row in rows if row.system == system]


def gain(rows: list[ScoreRow], system: str, set_name: str, snr: str, metric: str) -> float:
    """Mean over the files that the system has of its score minus that of the noisy input."""
    differences = paired_differences(of_system(rows, system), of_system(rows, NOISY))
    here = [row for row in differences if row.set == set_name and row.snr == snr]
    return interval(here, metric).mean


def number(value: float, metric: str) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:+.3f}" if metric == "estoi" else f"{value:+.1f}" if metric.startswith("si") else f"{value:+.2f}"


def gains(rows: list[ScoreRow], systems: list[str]) -> list[str]:
    """A table: a line per set and SNR, a group of columns per system."""
    head = [f"{system}: {LABELS[metric]}" for system in systems for metric in SHOWN]
    lines = [f"| set | SNR / dB | {' | '.join(head)} |", "|" + " --- |" * (len(head) + 2)]
    cells = [(name, snr) for name in unique(r.set for r in rows) for snr in snr_groups(rows) if snr != "all"]
    table = [[gain(rows, system, *cell, metric) for system in systems for metric in SHOWN] for cell in cells]
    table.append([sum(column) / len(column) for column in zip(*table, strict=True)])
    for (name, snr), values in zip([*cells, ("all", "")], table, strict=True):
        texts = [number(value, SHOWN[i % len(SHOWN)]) for i, value in enumerate(values)]
        lines.append(f"| {name} | {snr} | {' | '.join(texts)} |")
    return [*lines, ""]


def verdict(found: Interval) -> str:
    if found.n < 2 or not found.excludes_zero:
        return "no difference"
    return "yes" if found.mean > 0 else "the other way round"


def claim(rows: list[ScoreRow], text: str, ours: str, theirs: str, metrics: tuple[str, ...]) -> str:
    differences = paired_differences(of_system(rows, ours), of_system(rows, theirs))
    if not differences:
        return f"- {text}: not measured."
    parts = []
    for metric in metrics:
        found = [
            (name, interval([r for r in differences if r.set == name], metric)) for name in unique(r.set for r in rows)
        ]
        values = ", ".join(
            f"{name} {number(i.mean, metric)} ± {i.half_width:.3g} ({verdict(i)})" for name, i in found if i.n
        )
        if values:
            parts.append(f"{LABELS[metric]} {values}")
    return f"- {text}. {'; '.join(parts)}."


def page(out: Path, peers: Path | None) -> str:
    rows = read_scores(out / "scores.csv")
    for row in rows:
        row.values.pop("rtf", None)  # the runs shared the machine
    order = unique([NOISY, DEFAULT, STREAM, *(row.system for row in rows)])
    rows.sort(key=lambda row: order.index(row.system))
    files = len(of_system(rows, NOISY))
    ready = [system for system in order if system.split()[0] not in (NOISY, *udse_fast.sampler_names())]
    lines = [
        "# Quality of the samplers with the built-in priors", "",
        HEAD.format(udse_fast.__version__, torch.__version__, processor(), files),
        "", INTERVAL_NOTE, "",
        "## Gain over the noisy input", "", *gains(rows, [DEFAULT, STREAM, *ready]),
    ]  # fmt: skip
    later = out / "after_1s" / "scores.csv"
    if later.is_file():
        lines += ["## The same without the first second", "", *gains(read_scores(later), [DEFAULT, STREAM])]
    if peers is not None and (out / "peers" / "scores.csv").is_file():
        ours, others = read_scores(out / "peers" / "scores.csv"), read_scores(peers)
        tables = {system: table for table in (others, ours) for system in unique(r.system for r in table)}
        del tables[NOISY]  # each table has its own, perhaps at another level, which DNSMOS hears
        systems = unique([DEFAULT, STREAM, *tables])
        lines += ["## On the utterances of the ready-made enhancers", "",
            PEERS_NOTE, ""]  # fmt: skip
        for metric in SHOWN:
            lines += [f"| {LABELS[metric]} | " + " | ".join(systems) + " |", "|" + " --- |" * (len(systems) + 1)]
            for name in unique(r.set for r in others):
                snrs = [snr for snr in snr_groups(others) if snr != "all"]
                for label, chosen in (*((f"{name}, {snr} dB", [snr]) for snr in snrs), (f"{name}, mean", snrs)):
                    means = [
                        sum(gain(tables.get(s, ours), s, name, snr, metric) for snr in chosen) / len(chosen)
                        for s in systems
                    ]
                    lines.append(f"| {label} | {' | '.join(number(m, metric) for m in means)} |")
            lines.append("")
    lines += [
        "## What the papers find, and what is found here", "",
        CLAIMS_NOTE, "",
        *(claim(rows, *entry) for entry in CLAIMS), "",
        "## Scores", "", markdown(rows),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(f"usage: {sys.argv[0]} OUT [PEERS.csv]")
    print(page(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None))


if __name__ == "__main__":
    main()
