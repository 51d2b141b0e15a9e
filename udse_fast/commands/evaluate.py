"""`udse-fast evaluate`: score noisy/clean pairs, enhanced here or by others, and compare systems."""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.resources
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from udse_fast.commands.options import add_enhancer_arguments, enhancer_settings
from udse_fast.errors import UdseError
from udse_fast.evaluation.metrics import FAMILIES, METRICS, SAMPLE_RATE, score
from udse_fast.evaluation.pairs import (
    Key,
    Pair,
    cut_to_shortest,
    enhanced_files,
    pairs_in_folders,
    pairs_in_mixtures,
    pairs_in_table,
    plain_number,
    read_audio,
    read_table,
)
from udse_fast.evaluation.plots import draw_differences, draw_violins
from udse_fast.evaluation.tables import (
    INTERVAL_NOTE,
    ScoreRow,
    markdown,
    paired_differences,
    read_scores,
    unique,
    without_number,
)

CSV_COLUMNS = ("system", "set", "snr", "utterance", *METRICS, "rtf", "note")
NOISY = "noisy"


@dataclass(frozen=True)
class System:
    """Something to score: the noisy input, files that are enhanced already, or (files None) our enhancer.

    `settings` is what must be equal for scores of an earlier run to be kept.
    """

    name: str
    settings: dict[str, Any]
    files: dict[Key, Path] | None = None


@dataclass(frozen=True)
class Task:
    """One file of one system; `estimate` None: enhance it, and keep it in `write`. The first `skip` samples are not
    scored."""

    system: str
    pair: Pair
    estimate: Path | None
    metrics: tuple[str, ...]
    causal: bool = False
    oracle: str | None = None
    skip: int = 0
    write: Path | None = None


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
    done = _earlier_scores(out, systems, arguments.overwrite)
    skip = round(arguments.skip_seconds * SAMPLE_RATE)
    tasks = [
        Task(
            s.name,
            pair,
            s.files[pair.key] if s.files is not None else None,
            tuple(s.settings["metrics"]),
            arguments.causal,
            arguments.oracle,
            skip,
            arguments.write,
        )
        for s in systems
        for pair in pairs
        if (s.name, pair.key) not in {(row.system, row.key) for row in done}
    ]
    enhancer = enhancer_settings(arguments)
    jobs = min(arguments.jobs or _cores(), max(len(tasks), 1))
    kept = len(systems) * len(pairs) - len(tasks)
    if kept:
        print(f"{kept} of {kept + len(tasks)} files are in {out / 'scores.csv'} already", file=sys.stderr)
    with (out / "scores.csv").open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        for row in _scored(tasks, enhancer, jobs):
            writer.writerow(_csv_row(row))
            file.flush()
            done.append(row)
    _report(out, done, others, systems[0].name, arguments)
    return 0


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
    """Those that the table has, under their name or without its leading number; what it does not say may be any."""
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
    """What to score here, the main system first."""
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

    sampler: str = arguments.sampler or recommended_sampler(load_network(arguments.checkpoint).config)
    form = "causal" if arguments.causal else arguments.oracle
    return f"{sampler} ({form})" if form else sampler


def _weights_digest(checkpoint: str | None) -> str:
    """Short hash of the checkpoint, or of all built-in ones: scores of other weights must not be mixed."""
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


def _earlier_scores(out: Path, systems: Sequence[System], overwrite: bool) -> list[ScoreRow]:
    """Scores of an earlier run in `out`, after a check of its settings; starts scores.csv and settings.json.

    Scores of systems that are not in this run stay, so that one folder may collect several systems.
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
    with _written_whole(settings_file) as temporary:
        settings = {**earlier, **{system.name: system.settings for system in systems}}
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
    with _written_whole(scores) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_csv_row, rows))
    return rows


def _whole_rows(scores: Path) -> list[ScoreRow]:
    """Rows of scores.csv without a last line that an interruption left unfinished."""
    text = scores.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        scores.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return read_scores(scores) if text.count("\n") > 1 else []


def _scored(tasks: Sequence[Task], enhancer: dict[str, Any], jobs: int) -> Iterator[ScoreRow]:
    """Rows as files finish, in no order, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(tasks), unit="file", desc="evaluate", disable=not tasks) as bar:
        if jobs == 1:
            _start_worker(enhancer, None)
            for task in tasks:
                yield _score_task(task)
                bar.update()
            return
        threads = max(1, _cores() // jobs)
        strangers = {*multiprocessing.active_children()}
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker, (enhancer, threads))
        try:
            for future in as_completed([pool.submit(_score_task, task) for task in tasks]):
                yield future.result()
                bar.update()
        except BrokenProcessPool:
            raise UdseError(
                "a worker process died (out of memory?): go on with the same command and fewer --jobs"
            ) from None
        finally:  # an interruption does not wait: `shutdown` alone lets the workers go through all that is left
            for worker in {*multiprocessing.active_children()} - strangers:
                worker.terminate()
            pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}
"""Of a worker process: the enhancer's arguments, and the enhancer once a file needed it."""


def _start_worker(enhancer: dict[str, Any], threads: int | None) -> None:
    _worker.clear()
    _worker["arguments"] = enhancer
    if threads is not None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent process reports an interruption, once
        os.environ["OMP_NUM_THREADS"] = str(threads)
        _worker["threads"] = threads


def _enhancer() -> Any:
    if "enhancer" not in _worker:
        import torch

        from udse_fast.enhancer import Enhancer

        if "threads" in _worker:
            torch.set_num_threads(_worker["threads"])
        _worker["enhancer"] = Enhancer(**_worker["arguments"])
        warm_up = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
        _worker["enhancer"].enhance(warm_up, SAMPLE_RATE)  # one-time costs are not the first file's
    return _worker["enhancer"]


def _score_task(task: Task) -> ScoreRow:
    pair = task.pair
    enhancer: Any = _enhancer() if task.estimate is None else None
    recordings = [read_audio(path) for path in (pair.clean, pair.noisy, task.estimate) if path is not None]
    try:
        (clean, noisy), note = cut_to_shortest(recordings[:2])
        values: dict[str, float] = {}
        if task.estimate is None:
            make_noise_model = _true_noise(enhancer, noisy - clean, task.oracle) if task.oracle else None
            start = time.perf_counter()
            estimate = enhancer.separate(noisy, SAMPLE_RATE, causal=task.causal, make_noise_model=make_noise_model)[0]
            values["rtf"] = (time.perf_counter() - start) * SAMPLE_RATE / len(noisy)
            if task.write is not None:
                _keep(estimate, task.write, pair)
        else:
            (clean, noisy, estimate), cut = cut_to_shortest([clean, noisy, recordings[2]])
            note = cut or note
        if len(clean) <= task.skip:
            raise UdseError(f"expected more than --skip-seconds {task.skip / SAMPLE_RATE:g}, got {len(clean)} samples")
        scored = (clean[task.skip :], noisy[task.skip :], estimate[task.skip :])
        values = {**score(*scored, SAMPLE_RATE, task.metrics), **values}
    except UdseError as error:
        raise UdseError(f"{pair.noisy}: {error}") from error
    undefined = [name for name, value in values.items() if math.isnan(value)]
    notes = [note] if note else []
    if undefined:
        notes.append(f"undefined (silence, too little speech, or too long for PESQ): {' '.join(undefined)}")
    return ScoreRow(task.system, *pair.key, values, "; ".join(notes))


def _true_noise(enhancer: Any, noise: NDArray[np.float64], mode: str) -> Any:
    from udse_fast.evaluation.oracles import TrueNoise

    return TrueNoise(enhancer, noise, mode)


def _keep(estimate: NDArray[np.float64], folder: Path, pair: Pair) -> None:
    """In the layout that `enhanced_files` finds."""
    snr = [f"snr{pair.snr}"] if pair.snr else []
    target = folder.joinpath(pair.set, *snr, f"{pair.utterance}.wav")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, estimate, SAMPLE_RATE, subtype="FLOAT")
    except (OSError, soundfile.SoundFileError) as error:
        raise UdseError(f"--write: expected a folder to write to, got {folder}: {error}") from None


def _report(
    out: Path,
    rows: Sequence[ScoreRow],
    others: Sequence[ScoreRow],
    main: str,
    arguments: argparse.Namespace,
) -> None:
    """table.md, violins*.png and differences*.png."""
    own = unique(row.system for row in rows)
    groups = {(row.set, row.snr) for row in rows}
    renamed = [
        ScoreRow(f"{r.system} (other table)" if r.system in own else r.system, *r.key, r.values)
        for r in others
        if (r.set, r.snr) in groups
    ]
    everything = [*sorted(rows, key=lambda r: (r.system != NOISY, r.system != main)), *renamed]
    ours = [row for row in rows if row.system == main]
    differences = [
        difference
        for system in unique(r.system for r in everything)
        if system != main
        for difference in paired_differences(ours, [r for r in everything if r.system == system])
    ]
    text = [
        f"# {main}",
        "",
        f"Command: `udse-fast {' '.join(sys.argv[1:])}`" if "evaluate" in sys.argv else "",
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
    table = re.sub(r"\n{3,}", "\n\n", "\n".join(text))
    with _written_whole(out / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    for name in unique(row.set for row in rows):
        suffix = f"_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}" if name else ""
        title = name or str(arguments.out)
        with _written_whole(out / f"violins{suffix}.png") as temporary:
            draw_violins([r for r in everything if r.set == name], temporary, title)
        of_set = [r for r in differences if r.set == name]
        if of_set:
            with _written_whole(out / f"differences{suffix}.png") as temporary:
                draw_differences(of_set, temporary, f"{title}: {main} minus others")
    print(table)
    print(f"written: {out}/scores.csv, table.md and plots", file=sys.stderr)


def _csv_row(row: ScoreRow) -> dict[str, str]:
    values = {name: "nan" if math.isnan(value) else f"{value:.6g}" for name, value in row.values.items()}
    identity = {"system": row.system, "set": row.set, "snr": row.snr, "utterance": row.utterance}
    return {**identity, **values, "note": row.note}


def _written_whole(path: Path) -> Any:
    from udse_fast.checkpoints.checkpoint import (
        written_whole,
    )  # not above: it imports torch, which scoring files does without

    return written_whole(path)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
