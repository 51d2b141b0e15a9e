"""The report of an evaluation: table.md, and plots of scores and of paired differences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from udse_fast.atomic import atomic_write
from udse_fast.evaluation.plots import draw_differences, draw_violins
from udse_fast.evaluation.tables import INTERVAL_NOTE, ScoreRow, markdown, paired_differences, unique

NOISY = "noisy"
"""Name of the system that does nothing."""


def write_report(out: Path, rows: Sequence[ScoreRow], others: Sequence[ScoreRow], main: str, command: str) -> str:
    """Write table.md, violins*.png and differences*.png into `out`; returns the text of table.md.

    Args:
        out: an existing folder.
        rows: scores of this evaluation.
        others: scores from elsewhere; those of the sets and SNRs of `rows` are compared.
        main: the system that the others are compared with.
        command: the command line, for the head of the table; "" to leave it out.
    """
    everything = [*sorted(rows, key=lambda r: (r.system != NOISY, r.system != main)), *_comparable(rows, others)]
    differences = _differences(everything, [row for row in rows if row.system == main], main)
    table = _table(rows, everything, differences, main, command)
    with atomic_write(out / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    for name in unique(row.set for row in rows):
        suffix = f"_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}" if name else ""
        title = name or str(out)
        with atomic_write(out / f"violins{suffix}.png") as temporary:
            draw_violins([r for r in everything if r.set == name], temporary, title)
        of_set = [r for r in differences if r.set == name]
        if of_set:
            with atomic_write(out / f"differences{suffix}.png") as temporary:
                draw_differences(of_set, temporary, f"{title}: {main} minus others")
    return table


def _comparable(rows: Sequence[ScoreRow], others: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Other scores of the same sets and SNRs, under names that are not taken."""
    own = {row.system for row in rows}
    groups = {(row.set, row.snr) for row in rows}
    return [
        ScoreRow(f"{r.system} (other table)" if r.system in own else r.system, *r.key, r.values)
        for r in others
        if (r.set, r.snr) in groups
    ]


def _differences(everything: Sequence[ScoreRow], ours: Sequence[ScoreRow], main: str) -> list[ScoreRow]:
    """The main system minus each of the others, file by file."""
    return [
        difference
        for system in unique(r.system for r in everything)
        if system != main
        for difference in paired_differences(ours, [r for r in everything if r.system == system])
    ]


def _table(
    rows: Sequence[ScoreRow], everything: Sequence[ScoreRow], differences: Sequence[ScoreRow], main: str, command: str
) -> str:
    text = [
        f"# {main}",
        "",
        f"Command: `{command}`" if command else "",
        "",
        f"{INTERVAL_NOTE} SI-SDR without mean removal; PESQ WB and NB are MOS-LQO (P.862.2, P.862.1), "
        "NB raw is the P.862 scale; DNSMOS is P.835. "
        "RTF: processing time over duration, while --jobs files share the cores.",
        "",
        "## Scores",
        "",
        markdown(everything),
    ]
    if differences:
        text += [f"## {main} minus others, file by file", "", markdown(differences, differences=True)]
    notes = [f"- {r.system} {'/'.join(filter(None, r.key))}: {r.note}" for r in rows if r.note]
    if notes:
        text += ["## Notes", "", *notes, ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(text))
