"""Files on a cluster: nothing is lost with a worker, nothing is done twice, and the way to say so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from udse_fast.cli import main
from udse_fast.cluster.batches import MOST_FILES, in_batches, unfinished
from udse_fast.cluster.ray import Progress, Worker, perform_on_ray
from udse_fast.errors import UdseError


@dataclass(frozen=True)
class Task:
    source: Path
    out: Path


def tasks(folder: Path, sizes: list[int]) -> list[Task]:
    made = []
    for number, size in enumerate(sizes):
        source = folder / f"{number}.in"
        source.write_bytes(bytes(size))
        made.append(Task(source, folder / f"{number}.out"))
    return made


def test_batches_hold_every_file_once_the_longest_first_and_share_the_work(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(1, 2000, 400).tolist()
    jobs = tasks(tmp_path, sizes)
    batches = in_batches(jobs, workers=2)
    flat = [job for batch in batches for job in batch]
    assert sorted(job.source.name for job in flat) == sorted(job.source.name for job in jobs)
    lengths = [job.source.stat().st_size for job in flat]
    assert lengths == sorted(lengths, reverse=True)
    share = sum(sizes) / 32
    assert all(sum(job.source.stat().st_size for job in batch) <= share or len(batch) == 1 for batch in batches)
    assert 32 <= len(batches) <= 40


def test_a_file_longer_than_a_share_is_a_batch_and_many_empty_ones_are_not_one(tmp_path: Path) -> None:
    assert len(in_batches(tasks(tmp_path, [10**6, 1, 1, 1]), 1)[0]) == 1
    assert max(len(batch) for batch in in_batches(tasks(tmp_path, [0] * (MOST_FILES + 1)), 1)) == MOST_FILES
    assert in_batches([], 4) == []
    gone = Task(tmp_path / "gone.in", tmp_path / "gone.out")
    assert in_batches([gone], 1) == [[gone]]


def test_what_is_finished_is_left_out_and_what_changed_since_is_not(tmp_path: Path) -> None:
    missing, finished, changed = tasks(tmp_path, [1, 1, 1])
    for job, later in ((finished, 10), (changed, -10)):
        job.out.touch()
        os.utime(job.out, (0, job.source.stat().st_mtime + later))
    assert unfinished([missing, finished, changed]) == [missing, changed]


def test_a_worker_makes_what_performs_once() -> None:
    import pickle

    made = []

    def make() -> Callable[[int], int]:
        made.append(1)
        return lambda job: job + 1

    worker = Worker(make)
    for _ in range(2):
        (outcomes,) = worker({"jobs": [pickle.dumps([1, 2, 3])]})["outcomes"]
        assert pickle.loads(outcomes) == [2, 3, 4]
    assert len(made) == 1


def test_a_setting_that_fits_no_job_is_told_as_it_is() -> None:
    import pickle

    def perform(job: int) -> int:
        raise UdseError("steps: expected a whole number")

    (outcomes,) = Worker(lambda: perform)({"jobs": [pickle.dumps([1])]})["outcomes"]
    assert str(pickle.loads(outcomes)) == "steps: expected a whole number"


def test_progress_says_how_much_how_fast_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    told: list[str] = []
    progress = Progress(100, told.append, every_seconds=10)
    for _ in range(25):
        now += 1.2
        progress.add(180.0)
    assert told == [
        "9 of 100 files, 0.45 h, 150.0 times real time, 2 min left",
        "18 of 100 files, 0.90 h, 150.0 times real time, 2 min left",
    ]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UdseError, match=r"pip install 'udse-fast\[ray\]'"):
        next(perform_on_ray(lambda: lambda job: job, tasks(tmp_path, [1])))


@pytest.mark.needs("ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_worker_that_is_killed_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers; the one that gets the fourth file is killed in the middle of it, once."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    killed = tmp_path / "killed"

    def make() -> Callable[[Any], tuple[str, int]]:
        import os
        import signal

        def perform(job: Any) -> tuple[str, int]:
            if job.source.name == "3.in" and not killed.exists():
                killed.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            job.out.write_bytes(job.source.read_bytes() + b"done")
            return job.source.name, os.getpid()

        return perform

    jobs = tasks(tmp_path, [100 * (n + 1) for n in range(10)])
    outcomes = list(perform_on_ray(make, jobs, workers=2))
    assert sorted(name for name, _ in outcomes) == [f"{n}.in" for n in range(10)]
    assert all(job.out.read_bytes() == job.source.read_bytes() + b"done" for job in jobs)
    processes = {process for _, process in outcomes}
    assert len(processes) >= 2
    assert int(killed.read_text()) != dict(outcomes)["3.in"]


@pytest.mark.needs("ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_folder_is_enhanced_by_workers_and_goes_on_where_it_was(
    tmp_path: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Names that are relative, as the workers' current folder is another; one file that is none; the rest later."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("prior.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        soundfile.write(f"in/{name}.wav", generator.standard_normal(4000) * 0.1, 16000)
    Path("in/broken.wav").write_text("no sound")
    Path("out").mkdir()
    Path("out/c.wav").write_text("finished")
    command = ["enhance", "in", "-o", "out", "--checkpoint", "prior.safetensors", "--steps", "2", "--samples", "1"]
    assert main([*command, "--ray", "--jobs", "2"]) == 2
    said = capsys.readouterr()
    assert "1 of 4 recordings are finished already" in said.err
    assert "broken.wav" in said.err
    assert "2 of 3 files" in said.out
    assert Path("out/c.wav").read_text() == "finished"
    on_cluster = [soundfile.read(f"out/{name}.wav")[0] for name in ("a", "b")]
    assert main([*command[:3], "here", *command[4:], "--threads", "1"]) == 2
    for name, samples in zip(("a", "b"), on_cluster, strict=True):
        np.testing.assert_array_equal(samples, soundfile.read(f"here/{name}.wav")[0])
