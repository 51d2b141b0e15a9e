"""Score files one by one: enhance where that is asked for, in processes that each have an enhancer of their own."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from udse_fast.errors import UdseError
from udse_fast.evaluation.metrics import SAMPLE_RATE, score
from udse_fast.evaluation.pairs import Pair, cut_to_shortest, read_audio
from udse_fast.evaluation.tables import ScoreRow


@dataclass(frozen=True)
class Task:
    """One file of one system to score.

    If `estimate` is None, the noisy file is enhanced here, and the result is kept in the folder `write`. The first
    `skip` samples are left out of the scores.
    """

    system: str
    pair: Pair
    estimate: Path | None
    metrics: tuple[str, ...]
    causal: bool = False
    oracle: str | None = None
    skip: int = 0
    write: Path | None = None


def scored(tasks: Sequence[Task], enhancer: dict[str, Any], jobs: int) -> Iterator[ScoreRow]:
    """Yield the scores of the tasks as they are done, in no order, and show a progress bar.

    Args:
        tasks: what to score.
        enhancer: keyword arguments of `Enhancer`, for tasks without an estimate.
        jobs: processes at a time; 1 scores in this process.

    Raises:
        UdseError: a file that cannot be read, enhanced or scored; a process that died.
    """
    from tqdm import tqdm

    with tqdm(total=len(tasks), unit="file", desc="evaluate", disable=not tasks) as bar:
        if jobs == 1:
            _start_worker(enhancer, None)
            for task in tasks:
                yield score_task(task)
                bar.update()
            return
        threads = max(1, cores() // jobs)
        strangers = {*multiprocessing.active_children()}
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker, (enhancer, threads))
        try:
            for future in as_completed([pool.submit(score_task, task) for task in tasks]):
                yield future.result()
                bar.update()
        except BrokenProcessPool:
            raise UdseError(
                "a worker process died (out of memory?): go on with the same command and fewer --jobs"
            ) from None
        finally:  # end at once when interrupted: `shutdown` alone lets the workers go through all that is left
            for worker in {*multiprocessing.active_children()} - strangers:
                worker.terminate()
            pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}
"""State of a worker process: the enhancer's arguments, and the enhancer once a file needed it."""


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
        with suppress(UdseError):  # UDiffSE diverges on noise alone
            _worker["enhancer"].enhance(warm_up, SAMPLE_RATE)  # one-time costs are not the first file's
    return _worker["enhancer"]


def score_task(task: Task) -> ScoreRow:
    """Score one file in this process; values that the signals leave undefined are NaN, and noted."""
    pair = task.pair
    enhancer: Any = _enhancer() if task.estimate is None else None
    recordings = [read_audio(path) for path in (pair.clean, pair.noisy, task.estimate) if path is not None]
    try:
        (clean, noisy), note = cut_to_shortest(recordings[:2])
        values: dict[str, float] = {}
        if task.estimate is None:
            make_noise_model = _true_noise(enhancer, noisy - clean, task.oracle) if task.oracle else None
            start = time.perf_counter()
            estimate, _ = enhancer.separate(noisy, SAMPLE_RATE, causal=task.causal, make_noise_model=make_noise_model)
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
    """A maker of noise models that knows the noise; torch is imported with it."""
    from udse_fast.evaluation.oracles import TrueNoise

    return TrueNoise(enhancer, noise, mode)


def _keep(estimate: NDArray[np.float64], folder: Path, pair: Pair) -> None:
    """Write an estimate into `folder`, in the layout that `enhanced_files` finds."""
    snr = [f"snr{pair.snr}"] if pair.snr else []
    target = folder.joinpath(pair.set, *snr, f"{pair.utterance}.wav")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, estimate, SAMPLE_RATE, subtype="FLOAT")
    except (OSError, soundfile.SoundFileError) as error:
        raise UdseError(f"--write: expected a folder to write to, got {folder}: {error}") from None


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
