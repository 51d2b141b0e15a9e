"""`udse-fast evaluate`: score noisy/clean pairs, enhanced here or by others, and compare systems."""

from __future__ import annotations

import argparse
import hashlib
import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path

from udse_fast.commands.options import add_enhancer_arguments, enhancer_settings
from udse_fast.errors import UdseError
from udse_fast.evaluation.metrics import FAMILIES, SAMPLE_RATE
from udse_fast.evaluation.pairs import (
    Pair,
    enhanced_files,
    pairs_in_folders,
    pairs_in_mixtures,
    pairs_in_table,
    plain_number,
    read_table,
)
from udse_fast.evaluation.report import NOISY, write_report
from udse_fast.evaluation.score_folder import System, append_scores, earlier_scores
from udse_fast.evaluation.scoring import Task, cores, scored
from udse_fast.evaluation.tables import ScoreRow, read_scores, without_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add(
        "--mixtures",
        type=Path,
        metavar="DIR",
        help="all folders noisy/ beside clean/ in it; set and SNR from the path",
    )
    add("--noisy", type=Path, metavar="DIR", help="folder of noisy files; with --clean")
    add("--clean", type=Path, metavar="DIR", help="folder of clean files of the same names")
    add(
        "--pairs",
        type=Path,
        metavar="CSV",
        help="columns noisy, clean, optionally enhanced, utterance, set, snr",
    )
    add(
        "--only",
        type=Path,
        metavar="CSV",
        help="only the files of this table (column utterance, optionally set and snr)",
    )
    add("--enhanced", type=Path, metavar="DIR", help="score these files instead of enhancing")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="for scores.csv (resumed if there), table.md and plots",
    )
    add("--name", help="of the system in tables (default: the sampler, or the folder of --enhanced)")
    add(
        "--compare", type=Path, nargs="+", default=[], metavar="CSV|DIR",
        help="other systems: scores.csv files of other runs, or folders of enhanced files",
    )  # fmt: skip
    add(
        "--metrics", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="NAME",
        help=f"of {', '.join(FAMILIES)} (default: all)",
    )  # fmt: skip
    add("--write", type=Path, metavar="DIR", help="keep the enhanced files, for --enhanced DIR")
    add("--no-noisy", action="store_true", help="do not score the noisy input as well")
    add(
        "--jobs",
        type=int,
        default=None,
        help="files at a time (default: the number of cores; 1: for an honest RTF)",
    )
    add("--overwrite", action="store_true", help="score these systems again, whatever is in --out")
    add("--causal", action="store_true", help="as a causal stream, which looks ahead by its latency only")
    add(
        "--oracle",
        metavar="MODE",
        help="the noise model is given: 'oracle', NMF fitted to the true noise; 'pure oracle', its periodogram",
    )
    add("--skip-seconds", type=float, default=0.0, metavar="S",
        help="leave the first seconds out of the scores: a stream has yet to learn the noise (default: 0)")  # fmt: skip
    add_enhancer_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score what is missing in --out, then write scores.csv, table.md and plots; prints the table."""
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UdseError(f"expected --jobs of 1 or more, got {arguments.jobs}")
    if not 0 <= arguments.skip_seconds <= 3600:
        raise UdseError(f"expected --skip-seconds from 0 to 3600, got {arguments.skip_seconds}")
    pairs = _pairs(arguments)
    if arguments.only:
        pairs = _only(pairs, arguments.only)
    systems = _systems(arguments, pairs)
    others = [row for path in arguments.compare if not path.is_dir() for row in _other_scores(path)]
    out: Path = arguments.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UdseError(f"expected a folder to write to, got {out}: {error.strerror}") from None
    done = earlier_scores(out, systems, arguments.overwrite)
    tasks = _tasks(arguments, systems, pairs, done)
    if kept := len(systems) * len(pairs) - len(tasks):
        print(f"{kept} of {kept + len(tasks)} files are in {out / 'scores.csv'} already", file=sys.stderr)
    jobs = min(arguments.jobs or cores(), max(len(tasks), 1))
    done += append_scores(out, scored(tasks, enhancer_settings(arguments), jobs))
    command = f"udse-fast {' '.join(sys.argv[1:])}" if "evaluate" in sys.argv else ""
    print(write_report(out, done, others, systems[0].name, command))
    print(f"written: {out}/scores.csv, table.md and plots", file=sys.stderr)
    return 0


def _tasks(
    arguments: argparse.Namespace, systems: Sequence[System], pairs: Sequence[Pair], done: Sequence[ScoreRow]
) -> list[Task]:
    """The files of the systems that have no scores yet."""
    scored_already = {(row.system, row.key) for row in done}
    return [
        Task(
            system.name,
            pair,
            system.files[pair.key] if system.files is not None else None,
            tuple(system.settings["metrics"]),
            arguments.causal,
            arguments.oracle,
            round(arguments.skip_seconds * SAMPLE_RATE),
            arguments.write,
        )
        for system in systems
        for pair in pairs
        if (system.name, pair.key) not in scored_already
    ]


def _pairs(arguments: argparse.Namespace) -> list[Pair]:
    ways = [arguments.mixtures, arguments.noisy or arguments.clean, arguments.pairs]
    if sum(way is not None for way in ways) != 1:
        raise UdseError("expected one of --mixtures DIR, --noisy DIR --clean DIR, --pairs CSV: give exactly one")
    if arguments.mixtures:
        return pairs_in_mixtures(arguments.mixtures)
    if arguments.pairs:
        return pairs_in_table(arguments.pairs)
    if not (arguments.noisy and arguments.clean):
        raise UdseError("expected --noisy DIR and --clean DIR, got one of them: give both")
    return pairs_in_folders(arguments.noisy, arguments.clean)


def _only(pairs: Sequence[Pair], table: Path) -> list[Pair]:
    """Keep the pairs that the table lists, by name with or without the leading number.

    Where the table has no column for set or SNR, all of them are kept.
    """
    rows = read_table(table, ("utterance",))
    columns = [name for name in ("set", "snr") if name in rows[0]]
    named = {(row["utterance"], *(plain_number(row[name]) for name in columns)) for row in rows}
    kept = [
        pair
        for pair in pairs
        if named
        & {
            (name, *(getattr(pair, column) for column in columns))
            for name in (pair.utterance, without_number(pair.utterance))
        }
    ]
    if not kept:
        raise UdseError(f"--only: expected names of the {len(pairs)} noisy files in {table}, found none")
    return kept


def _systems(arguments: argparse.Namespace, pairs: Sequence[Pair]) -> list[System]:
    """The systems to score here, the main one first."""
    source = arguments.mixtures or arguments.pairs or arguments.noisy
    common = {"data": str(source.resolve()), "metrics": sorted(arguments.metrics)}
    if arguments.skip_seconds:
        common["skip_seconds"] = arguments.skip_seconds

    def ready(name: str, folder: Path) -> System:
        return System(name, {**common, "files": str(folder.resolve())}, enhanced_files(folder, pairs))

    if arguments.enhanced:
        systems = [ready(arguments.name or arguments.enhanced.name, arguments.enhanced)]
    elif pairs[0].enhanced:
        files = {pair.key: pair.enhanced for pair in pairs if pair.enhanced}
        systems = [System(arguments.name or "enhanced", {**common, "files": str(source.resolve())}, files)]
    else:
        settings = enhancer_settings(arguments)
        settings |= {"weights": _weights_digest(arguments.checkpoint), "causal": arguments.causal}
        if arguments.oracle:
            settings["oracle"] = arguments.oracle
        systems = [System(arguments.name or _system_name(arguments), {**common, **settings})]
    if not arguments.no_noisy:
        systems.append(System(NOISY, {**common, "files": NOISY}, {pair.key: pair.noisy for pair in pairs}))
    systems += [ready(folder.name, folder) for folder in arguments.compare if folder.is_dir()]
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise UdseError(f"expected different names of systems, got {', '.join(names)}: set --name or rename folders")
    return systems


def _system_name(arguments: argparse.Namespace) -> str:
    from udse_fast.checkpoints.checkpoint import load_network
    from udse_fast.sampling.samplers import recommended_sampler

    network = load_network(arguments.checkpoint)
    sampler: str = arguments.sampler or recommended_sampler(network.config, network.kind)
    form = "causal" if arguments.causal else arguments.oracle
    return f"{sampler} ({form})" if form else sampler


def _weights_digest(checkpoint: str | None) -> str:
    """A short hash of the checkpoint, or of all built-in ones, so that scores of other weights are not mixed."""
    if checkpoint is None:
        priors = importlib.resources.files("udse_fast") / "priors"
        found = priors.iterdir() if priors.is_dir() else ()
        files = sorted((f for f in found if f.name.endswith(".safetensors")), key=lambda f: f.name)
        content = b"".join(f.read_bytes() for f in files)
    else:
        try:
            content = Path(checkpoint).read_bytes()
        except OSError as error:
            raise UdseError(f"expected a checkpoint file, got {checkpoint}: {error.strerror}") from None
    return hashlib.sha256(content).hexdigest()[:16]


def _other_scores(table: Path) -> list[ScoreRow]:
    if not table.is_file():
        raise UdseError(f"expected --compare with CSV files or folders, got {table}: there is no such file")
    return read_scores(table)
