"""The page of the scores that reuse_estimate.sh made: `python benchmarks/reuse_estimate_page.py OUT > PAGE.md`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import udse_fast
from udse_fast.commands.info import processor
from udse_fast.evaluation.tables import (
    INTERVAL_NOTE,
    LABELS,
    ScoreRow,
    interval,
    paired_differences,
    read_scores,
    unique,
)

REUSED = ", reused"
SHOWN = ("si_sdr", "pesq_nb_raw", "estoi", "dnsmos_ovrl")
DIGITS = {"si_sdr": 2, "pesq_nb_raw": 3, "estoi": 3, "dnsmos_ovrl": 3}
HEAD = """\
# One network call a step

The published samplers ask the network twice a step: for the corrector, and for the predictor. With
`reuse_estimate=True` the predictor takes the corrector's denoised estimate, made a small move earlier: half the calls.
Made with `benchmarks/reuse_estimate.sh`: built-in prior and its settings for these samplers (12 steps, one sample),
udse-fast {}, torch {}, {}.

`both calls` and `one call` are the gains over the noisy input, `lost` is what the second call is worth, file by file.
"""
FOOT = """
ParaDiffUSE's settings have no corrector, and no second call."""


def cells(rows: list[ScoreRow]) -> list[str]:
    """Mean and half width of the interval, of each metric that is shown."""
    found = [(interval(rows, metric), DIGITS[metric]) for metric in SHOWN]
    return [f"{i.mean:+.{digits}f} ± {i.half_width:.{digits}f}" for i, digits in found]


def page(out: Path) -> str:
    """Every sampler that was scored both ways."""
    rows = read_scores(out / "scores.csv")
    by_system = {name: [row for row in rows if row.system == name] for name in unique(row.system for row in rows)}
    lines = [
        HEAD.format(udse_fast.__version__, torch.__version__, processor()), INTERVAL_NOTE, "",
        f"| sampler | files | what | {' | '.join(LABELS[metric] for metric in SHOWN)} |",
        "|" + " --- |" * (len(SHOWN) + 3),
    ]  # fmt: skip
    for name, twice in by_system.items():
        once = by_system.get(name + REUSED, [])
        keys = {row.key for row in once} & {row.key for row in twice}
        if not keys:
            continue
        twice, once = ([row for row in table if row.key in keys] for table in (twice, once))
        for what, table in (
            ("both calls", paired_differences(twice, by_system["noisy"])),
            ("one call", paired_differences(once, by_system["noisy"])),
            ("lost", paired_differences(twice, once)),
        ):
            lines.append(f"| `{name}` | {len(keys)} | {what} | {' | '.join(cells(table))} |")
    return "\n".join([*lines, FOOT])


def main() -> None:
    """Print the page."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    print(page(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
