"""A folder of scores that grows: scores.csv, and settings.json with what each system in it was made with."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udse_fast.atomic import atomic_write
from udse_fast.errors import UdseError
from udse_fast.evaluation.metrics import METRICS
from udse_fast.evaluation.pairs import Key
from udse_fast.evaluation.tables import ScoreRow, read_scores

CSV_COLUMNS = ("system", "set", "snr", "utterance", *METRICS, "rtf", "note")


@dataclass(frozen=True)
class System:
    """Something to score: the noisy input, files that are enhanced already, or (`files` is None) our enhancer.

    Scores of an earlier run are kept only if its `settings` were equal.
    """

    name: str
    settings: dict[str, Any]
    files: dict[Key, Path] | None = None


def earlier_scores(out: Path, systems: Sequence[System], overwrite: bool) -> list[ScoreRow]:
    """Read the scores of an earlier run in `out`, and write scores.csv and settings.json anew for this one.

    Scores of systems that are not in this run stay, so that one folder may collect several systems. With `overwrite`
    those of `systems` are dropped.

    Raises:
        UdseError: the earlier scores of one of `systems` were made with other settings.
    """
    scores, settings_file = out / "scores.csv", out / "settings.json"
    try:
        earlier = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
    except ValueError:
        raise UdseError(f"expected JSON in {settings_file}: remove it, or choose another --out") from None
    names = {system.name for system in systems}
    rows = _whole_rows(scores) if scores.is_file() else []
    if overwrite:
        rows = [row for row in rows if row.system not in names]
    for system in systems:
        if any(row.system == system.name for row in rows):
            before = earlier.get(system.name, system.settings)
            if {*before.get("metrics", ())} >= {*system.settings["metrics"]}:  # more than is asked for now: as many
                system.settings["metrics"] = before["metrics"]
            changed = [k for k in {**before, **system.settings} if before.get(k) != system.settings.get(k)]
            if changed:
                what = ", ".join(f"{k} {before.get(k)} -> {system.settings.get(k)}" for k in changed)
                raise UdseError(
                    f"{out} holds scores of {system.name!r} with other settings ({what}): "
                    "choose another --out or --name, or --overwrite"
                )
    with atomic_write(settings_file) as temporary:
        settings = {**earlier, **{system.name: system.settings for system in systems}}
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
    with atomic_write(scores) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_csv_row, rows))
    return rows


def append_scores(out: Path, rows: Iterable[ScoreRow]) -> Iterator[ScoreRow]:
    """Write each row to scores.csv in `out` as it comes, then yield it: an interruption loses no finished file."""
    with (out / "scores.csv").open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        for row in rows:
            writer.writerow(_csv_row(row))
            file.flush()
            yield row


def _whole_rows(scores: Path) -> list[ScoreRow]:
    """Read scores.csv; drop a last line that an interruption left unfinished."""
    text = scores.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        scores.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return read_scores(scores) if text.count("\n") > 1 else []


def _csv_row(row: ScoreRow) -> dict[str, str]:
    values = {name: "nan" if math.isnan(value) else f"{value:.6g}" for name, value in row.values.items()}
    identity = {"system": row.system, "set": row.set, "snr": row.snr, "utterance": row.utterance}
    return {**identity, **values, "note": row.note}
