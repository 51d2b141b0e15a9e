"""Noisy recordings with their clean references: found in folders or in a table, read at 16 kHz."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from udse_fast.audio import files as recordings
from udse_fast.errors import UdseError
from udse_fast.evaluation.metrics import SAMPLE_RATE
from udse_fast.training.corpus import recordings_in

Key = tuple[str, str, str]

CUT_NOTE_SECONDS = 0.01
"""A difference in length up to this, a transform's padding, is cut without a note."""

_SNR_FOLDER = re.compile(r"snr[_=]?([+-]?\d+(?:\.\d+)?)(?:db)?|([+-]?\d+(?:\.\d+)?)db", re.IGNORECASE)
_ROLE_FOLDERS = ("noisy", "enhanced")


@dataclass(frozen=True)
class Pair:
    """One noisy recording and its clean reference; `set` and `snr` (dB) are "" where unknown."""

    noisy: Path
    clean: Path
    utterance: str
    set: str = ""
    snr: str = ""
    enhanced: Path | None = None

    @property
    def key(self) -> Key:
        return self.set, self.snr, self.utterance


def pairs_in_mixtures(root: Path) -> list[Pair]:
    """Find every folder `noisy` beside a `clean` below `root`; the path gives set and SNR (matched/snr-5/noisy)."""
    if not root.is_dir():
        raise UdseError(f"expected a folder of mixtures, got {root}: give an existing folder")
    folders = sorted(f for f in root.rglob("noisy") if f.is_dir() and (f.parent / "clean").is_dir())
    if not folders:
        raise UdseError(f"expected folders noisy/ beside clean/ below {root}, found none: see --noisy and --clean")
    return _unique(
        pair
        for folder in folders
        for pair in pairs_in_folders(folder, folder.parent / "clean", folder.parent.relative_to(root).parts)
    )


def pairs_in_folders(noisy: Path, clean: Path, above: tuple[str, ...] = ()) -> list[Pair]:
    """Find the pairs of equal relative path (without suffix) in two folders; a folder such as snr-5 gives the SNR.

    Args:
        above: names of folders that stand for the part of the path above `noisy`.

    Raises:
        UdseError: a noisy file has no clean one.
    """
    noisy_files, clean_files = _by_name(noisy), _by_name(clean)
    missing = sorted(set(noisy_files) - set(clean_files))
    if missing:
        raise UdseError(
            f"expected a clean file for all of the {len(noisy_files)} noisy ones, {len(missing)} missing "
            f"in {clean} (first: {'/'.join(missing[0])}): use equal names, or a table with --pairs"
        )
    pairs = []
    for parts, path in noisy_files.items():
        set_name, snr, utterance = _groups((*above, *parts))
        pairs.append(Pair(path, clean_files[parts], utterance, set_name, snr))
    return _unique(pairs)


def pairs_in_table(table: Path) -> list[Pair]:
    """Read a CSV of pairs: columns noisy, clean (paths relative to it), perhaps enhanced, utterance, set, snr."""
    rows = read_table(table, ("noisy", "clean"))
    pairs = []
    for row in rows:
        enhanced = row.get("enhanced")
        pair = Pair(
            table.parent / row["noisy"],
            table.parent / row["clean"],
            row.get("utterance") or Path(row["noisy"]).stem,
            row.get("set", ""),
            plain_number(row.get("snr", "")),
            table.parent / enhanced if enhanced else None,
        )
        for path in (pair.noisy, pair.clean, pair.enhanced):
            if path is not None and not path.is_file():
                raise UdseError(f"{table} names {path}, which is not a file: correct the table")
        pairs.append(pair)
    if any(p.enhanced for p in pairs) and not all(p.enhanced for p in pairs):
        raise UdseError(f"{table}: expected an enhanced file in each row or in none: fill the column or drop it")
    return _unique(pairs)


def enhanced_files(folder: Path, pairs: Sequence[Pair]) -> dict[Key, Path]:
    """Find the enhanced file of each pair in the layout of the noisy files, with or without noisy/ or enhanced/.

    Raises:
        UdseError: a file is missing.
    """
    found: dict[Key, Path] = {}
    for parts, path in _by_name(folder).items():
        found[_groups(tuple(p for p in parts if p not in _ROLE_FOLDERS))] = path
    missing = [pair for pair in pairs if pair.key not in found]
    if missing:
        raise UdseError(
            f"expected enhanced files for all {len(pairs)} noisy ones, {len(missing)} missing "
            f"in {folder} (first: that of {missing[0].noisy}): keep layout and names of the noisy files"
        )
    return {pair.key: found[pair.key] for pair in pairs}


def read_table(table: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV with a header line.

    Raises:
        UdseError: unreadable, or without one of the `required` columns.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UdseError(f"expected a readable CSV file, got {table}: {error}") from None
    reader = csv.DictReader(text.splitlines(), restval="")
    absent = [name for name in required if name not in (reader.fieldnames or ())]
    if absent:
        raise UdseError(f"{table}: expected the columns {', '.join(required)}; add {', '.join(absent)}")
    rows = [{name: value for name, value in row.items() if name is not None} for row in reader]
    if not rows:
        raise UdseError(f"{table}: expected at least one row below the header, got none")
    return rows


def plain_number(text: str) -> str:
    """Write '-5.0' and '-5' as '-5', and other texts as they are."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def read_audio(path: Path) -> NDArray[np.float64]:
    """Read a mono recording as (L,) float64, full scale 1, resampled to 16 kHz."""
    samples, rate = recordings.read_audio(path)
    audio = samples.astype(np.float64)
    if audio.shape[1] != 1:
        raise UdseError(f"{path}: expected mono recordings, got {audio.shape[1]} channels; choose one channel")
    signal: NDArray[np.float64] = audio[:, 0] if rate == SAMPLE_RATE else soxr.resample(audio[:, 0], rate, SAMPLE_RATE)
    return signal


def cut_to_shortest(signals: Sequence[NDArray[np.float64]]) -> tuple[list[NDArray[np.float64]], str]:
    """Cut the signals at their end to the shortest; note it if that took more than CUT_NOTE_SECONDS."""
    lengths = [len(signal) for signal in signals]
    shortest = min(lengths)
    note = ""
    if max(lengths) - shortest > CUT_NOTE_SECONDS * SAMPLE_RATE:
        note = f"cut from {max(lengths) / SAMPLE_RATE:.2f} s to {shortest / SAMPLE_RATE:.2f} s"
    return [signal[:shortest] for signal in signals], note


def _by_name(folder: Path) -> dict[tuple[str, ...], Path]:
    """Map each relative path without suffix to its file."""
    files: dict[tuple[str, ...], Path] = {}
    for path in recordings_in(folder):
        name = path.relative_to(folder).with_suffix("").parts
        if name in files:
            raise UdseError(f"expected one file per name, got {files[name]} and {path}: remove one")
        files[name] = path
    return files


def _groups(parts: tuple[str, ...]) -> Key:
    """Split a path into (set, snr, utterance): the set stands above a folder such as snr-5 or 5dB."""
    for n, part in enumerate(parts[:-1]):
        if match := _SNR_FOLDER.fullmatch(part):
            return "/".join(parts[:n]), plain_number(match[1] or match[2]), "/".join(parts[n + 1 :])
    return "", "", "/".join(parts)


def _unique(pairs: Iterable[Pair]) -> list[Pair]:
    seen: dict[Key, Pair] = {}
    for pair in pairs:
        if pair.key in seen:
            names = f"{seen[pair.key].noisy} and {pair.noisy}"
            raise UdseError(f"expected one file per set, SNR and utterance, got {names}: rename one, or add columns")
        seen[pair.key] = pair
    return list(seen.values())
