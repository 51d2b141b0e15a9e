"""Scores of systems: means with confidence intervals, paired differences, Markdown tables."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udse_fast.evaluation.metrics import METRICS, require
from udse_fast.evaluation.pairs import Key, plain_number, read_table

COLUMNS = (*METRICS, "rtf")
LABELS = {
    "si_sdr": "SI-SDR / dB", "si_sir": "SI-SIR / dB", "si_sar": "SI-SAR / dB", "pesq_wb": "PESQ WB",
    "pesq_nb": "PESQ NB", "pesq_nb_raw": "PESQ NB raw", "estoi": "ESTOI", "dnsmos_sig": "DNSMOS SIG",
    "dnsmos_bak": "DNSMOS BAK", "dnsmos_ovrl": "DNSMOS OVRL", "rtf": "RTF",
}  # fmt: skip
ALL_SNRS = "all"
CONFIDENCE = 0.95
INTERVAL_NOTE = (
    f"Mean ± half width of the {CONFIDENCE:.0%} confidence interval (Student t over utterances; in rows "
    f'"{ALL_SNRS}" the mean over its SNRs counts as one value per utterance).'
)
_THREE_DIGITS = ("estoi", "rtf")


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one file by one system; `values` may hold NaN (undefined) and lack what was not measured."""

    system: str
    set: str
    snr: str
    utterance: str
    values: dict[str, float]
    note: str = ""

    @property
    def key(self) -> Key:
        return self.set, self.snr, self.utterance


@dataclass(frozen=True)
class Interval:
    """Mean of n values and the half width of its confidence interval (NaN for fewer than two values)."""

    mean: float
    half_width: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width


def read_scores(table: Path) -> list[ScoreRow]:
    """Read a CSV of scores: columns system and utterance, optionally set, snr, note, and those of COLUMNS."""
    return [
        ScoreRow(
            row["system"],
            row.get("set", ""),
            plain_number(row.get("snr", "")),
            row["utterance"],
            {name: _number(row[name]) for name in COLUMNS if row.get(name)},
            row.get("note", ""),
        )
        for row in read_table(table, ("system", "utterance"))
    ]


def mean_interval(values: Iterable[float]) -> Interval:
    """Return Student's t interval of the mean of the finite values."""
    finite = np.array([v for v in values if math.isfinite(v)])
    n = len(finite)
    if n < 2:
        return Interval(float(finite.mean()) if n else math.nan, math.nan, n)
    quantile = require("scipy.stats").t.ppf(0.5 + CONFIDENCE / 2, n - 1)
    return Interval(float(finite.mean()), float(quantile * finite.std(ddof=1) / math.sqrt(n)), n)


def paired_differences(ours: Sequence[ScoreRow], theirs: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Return ours - theirs for each file that both have, under the name of the other system.

    Utterances are matched by name; if none agrees, without a leading running number ("003_name" is "name").
    """
    for name in (_same, without_number):
        others = {(r.set, r.snr, name(r.utterance)): r for r in theirs}
        both = [(r, others[k]) for r in ours if (k := (r.set, r.snr, name(r.utterance))) in others]
        if both:
            break
    return [
        ScoreRow(
            other.system, row.set, row.snr, row.utterance,
            {m: row.values[m] - other.values[m] for m in COLUMNS if m in row.values and m in other.values},
        )
        for row, other in both
    ]  # fmt: skip


def markdown(rows: Sequence[ScoreRow], differences: bool = False) -> str:
    """Write one table per set: a line per SNR and system, a column per metric; bold where the interval excludes 0."""
    metrics = [m for m in COLUMNS if any(m in r.values for r in rows)]
    lines: list[str] = []
    for set_name in unique(r.set for r in rows):
        in_set = [r for r in rows if r.set == set_name]
        if set_name:
            lines += [f"### {set_name}", ""]
        lines += [
            " | ".join(["| SNR / dB", "minus" if differences else "system", "n", *(LABELS[m] for m in metrics)]) + " |",
            "|" + " --- |" * (len(metrics) + 3),
        ]
        for snr in snr_groups(in_set):
            for system in unique(r.system for r in in_set):
                group = [r for r in in_set if r.system == system and snr in (r.snr, ALL_SNRS)]
                cells = [_cell(group, m, differences) for m in metrics]
                if group:
                    lines.append(f"| {snr or '–'} | {system} | {len(group)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def interval(group: Sequence[ScoreRow], metric: str) -> Interval:
    """Return the interval over utterances. Scores of one utterance at several SNRs are dependent: their mean counts."""
    by_utterance: dict[str, list[float]] = defaultdict(list)
    for row in group:
        if math.isfinite(value := row.values.get(metric, math.nan)):
            by_utterance[row.utterance].append(value)
    return mean_interval(float(np.mean(values)) for values in by_utterance.values())


def snr_groups(rows: Sequence[ScoreRow]) -> list[str]:
    """Return the SNRs in rising order, followed by ALL_SNRS if there are several."""
    snrs = sorted(unique(r.snr for r in rows), key=lambda snr: (_number(snr, math.inf), snr))
    return [*snrs, ALL_SNRS] if len(snrs) > 1 else snrs


def unique(names: Iterable[str]) -> list[str]:
    """Return each name once, in order of appearance."""
    return list(dict.fromkeys(names))


def _cell(group: Sequence[ScoreRow], metric: str, differences: bool) -> str:
    found = interval(group, metric)
    if not found.n:
        return "–"
    digits = 3 if metric in _THREE_DIGITS else 2
    mean = round(found.mean, digits) + 0.0  # no "-0.00"
    text = f"{mean:{'+' if differences else ''}.{digits}f}"
    if differences and found.excludes_zero and mean:
        text = f"**{text}**"
    if found.n > 1:
        text += f" ± {found.half_width:.{digits}f}"
    defined = sum(math.isfinite(row.values.get(metric, math.nan)) for row in group)
    return text if defined == len(group) else f"{text} ({defined} files)"


def _number(text: str, otherwise: float = math.nan) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise


def _same(utterance: str) -> str:
    return utterance


def without_number(utterance: str) -> str:
    """Drop a leading running number: "003_name" becomes "name"."""
    return re.sub(r"^\d+_", "", utterance)
