"""`udse-fast enhance`: files, folders and pipes, of any length in constant memory."""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from udse_fast.commands.jobs import Job, Outcome, plan, shown
from udse_fast.commands.options import add_enhancer_arguments, make_enhancer
from udse_fast.commands.progress import progress_bar
from udse_fast.commands.workers import cores, run_in_processes
from udse_fast.errors import UdseError, notice, report_error

if TYPE_CHECKING:
    from udse_fast.audio.files import Recording
    from udse_fast.enhancer import Enhancer
    from udse_fast.plots import RunningSpectrogram

PUSH_SECONDS = 1.0
"""Audio read at a time."""
TRUNCATED_SECONDS = 0.1
"""Headers of lossy formats may be off by a codec frame; more than this is a truncated file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("inputs", nargs="*", metavar="IN", help="recordings or videos, folders of them, - for standard input")
    add("--example", action="store_true", help="enhance the noisy recording that comes with the package")
    add("-o", "--out", required=True, metavar="OUT", help="file (for one input), folder, or - for standard output; "
        "sample rate, channels, subtype, bit rate and container are kept")  # fmt: skip
    add("--noise-out", metavar="OUT", help="write what was taken away too, like -o")
    add(
        "--plot",
        metavar="FILE.png",
        help="spectrograms before and after; a folder for several inputs",
    )
    add("--causal", action="store_true", help="as a causal stream would, which looks ahead by its latency only")
    add("--skip-unreadable", action="store_true", help="inputs that cannot be read are told and are no failure")
    add("--jobs", type=int, default=1, metavar="N",
        help="recordings at a time, each in a process with its share of the cores (default: %(default)s)")  # fmt: skip
    add("--ray", nargs="?", const="local", metavar="ADDRESS",
        help="workers on a Ray cluster, or on this machine's cores; what is finished already is left out")  # fmt: skip
    add("--json", action="store_true", help="one JSON object on stdout instead of lines")
    add("--progress", action=argparse.BooleanOptionalAction, help="progress bar (default: on a terminal)")
    add_enhancer_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Enhance everything; what fails is named and the others go on. 0, or 2 if something failed."""
    from udse_fast.audio.outputs import STDOUT

    if arguments.jobs < 1:
        raise UdseError(f"--jobs: expected a whole number >= 1, got {arguments.jobs}")
    started = time.perf_counter()
    with _inputs(arguments) as inputs:
        jobs, outcomes, remarks = plan(inputs, arguments.out, arguments.noise_out, arguments.plot)
        for remark in remarks:
            notice(remark)
        to_stdout = any(STDOUT in job.targets for job in jobs)
        listener = sys.stderr if to_stdout else sys.stdout
        for outcome in outcomes:
            _tell(outcome, arguments, listener)
        for outcome in _outcomes(jobs, arguments):
            outcomes.append(outcome)
            _tell(outcome, arguments, listener)
    failed = [o for o in outcomes if o.error is not None and not (arguments.skip_unreadable and o.unreadable)]
    summary = _summary(outcomes, len(failed), time.perf_counter() - started)
    if arguments.json:
        print(json.dumps({**summary, "files": [_described(o) for o in outcomes]}, indent=1), file=listener, flush=True)
    elif len(outcomes) > 1:
        print(
            f"{summary['enhanced']} of {len(outcomes)} files, {summary['seconds']:.2f} s "
            f"in {summary['wall_seconds']:.2f} s, RTF {summary['real_time_factor'] or 0:.2f}, "
            f"{summary['failed']} failed, {summary['skipped']} skipped",
            file=listener,
            flush=True,
        )
    return 2 if failed else 0


@contextmanager
def _inputs(arguments: argparse.Namespace) -> Iterator[list[str]]:
    if arguments.example == bool(arguments.inputs):
        raise UdseError("expected recordings or folders to enhance, or --example; see udse-fast enhance --help")
    if not arguments.example:
        yield arguments.inputs
        return
    example = importlib.resources.files("udse_fast") / "examples" / "noisy.flac"
    with importlib.resources.as_file(example) as path:
        yield [str(path)]


def _tell(outcome: Outcome, arguments: argparse.Namespace, listener: Any) -> None:
    """A line about one input."""
    if outcome.error is None:
        if arguments.json:
            return
        assert outcome.out is not None
        factor = outcome.wall_seconds / outcome.seconds
        loading = f", after {outcome.loading_seconds:.1f} s of loading" if outcome.loading_seconds >= 0.05 else ""
        print(
            f"{shown(outcome.source)} -> {shown(outcome.out)}: {outcome.seconds:.2f} s "
            f"in {outcome.wall_seconds:.2f} s, RTF {factor:.2f}{loading}",
            file=listener,
            flush=True,
        )
    elif arguments.skip_unreadable and outcome.unreadable:
        notice(f"skipped: {outcome.error}")
    else:
        report_error(outcome.error)


def _summary(outcomes: Sequence[Outcome], failed: int, wall: float) -> dict[str, Any]:
    seconds = sum(outcome.seconds for outcome in outcomes)
    enhanced = sum(outcome.error is None for outcome in outcomes)
    return {
        "enhanced": enhanced,
        "failed": failed,
        "skipped": len(outcomes) - enhanced - failed,
        "seconds": round(seconds, 3),
        "wall_seconds": round(wall, 3),
        "real_time_factor": round(wall / seconds, 4) if seconds else None,
    }


def _described(outcome: Outcome) -> dict[str, Any]:
    return {
        "source": str(outcome.source),
        "out": None if outcome.out is None else str(outcome.out),
        "seconds": round(outcome.seconds, 3),
        "wall_seconds": round(outcome.wall_seconds, 3),
        "loading_seconds": round(outcome.loading_seconds, 3),
        "error": outcome.error,
    }


def _outcomes(jobs: list[Job], arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Of every job as it is done: here, or in several processes; what only this process can read is read here."""
    from udse_fast.audio.inputs import is_pipe
    from udse_fast.audio.outputs import is_special

    if arguments.ray is not None:
        yield from _outcomes_on_ray(jobs, arguments)
        return
    watched = sys.stderr is not None and sys.stderr.isatty()
    progress = watched if arguments.progress is None else arguments.progress
    elsewhere: list[Job] = []
    if arguments.jobs > 1 and len(jobs) > 1:
        elsewhere = [job for job in jobs if not is_pipe(job.source) and not any(map(is_special, job.targets))]
    perform = _performer(arguments, progress)
    for job in jobs:
        if job not in elsewhere:
            yield perform(job)
    if elsewhere:
        if arguments.threads is None:
            arguments.threads = max(1, cores() // arguments.jobs)
        yield from run_in_processes(_performer, arguments, elsewhere, arguments.jobs, _lost)


def _outcomes_on_ray(jobs: list[Job], arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Of every job that is not finished, by the workers of a cluster, which may have another current folder."""
    from udse_fast.audio.inputs import is_pipe
    from udse_fast.audio.outputs import is_special
    from udse_fast.cluster.batches import unfinished
    from udse_fast.cluster.ray import Progress, perform_on_ray

    if any(is_pipe(job.source) or any(map(is_special, job.targets)) for job in jobs):
        raise UdseError("--ray: expected files and folders that all workers see, got a pipe or device")
    left = [job.absolute() for job in unfinished(jobs)]
    if len(left) < len(jobs):
        notice(f"{len(jobs) - len(left)} of {len(jobs)} recordings are finished already")
    if not left:
        return
    for name in ("checkpoint", "noise_checkpoint"):
        if (path := getattr(arguments, name)) is not None and os.path.exists(path):
            setattr(arguments, name, os.path.abspath(path))
    arguments.threads = arguments.threads or 1
    progress = Progress(len(left), notice)
    for outcome in perform_on_ray(
        partial(_performer, arguments),
        left,
        address=arguments.ray,
        workers=arguments.jobs if arguments.jobs > 1 else None,
        threads=arguments.threads,
        gpus=1 if arguments.device.startswith("cuda") else 0,
    ):
        progress.add(outcome.seconds)
        yield outcome


def _performer(arguments: argparse.Namespace, progress: bool = False) -> Callable[[Job], Outcome]:
    """Enhances recordings, with one Enhancer, which is loaded when the first of them is known to be audio."""
    kept: list[Enhancer] = []

    def enhancer() -> Enhancer:
        if not kept:
            kept.append(make_enhancer(arguments))
        return kept[0]

    return partial(_perform, enhancer=enhancer, progress=progress, causal=arguments.causal)


def _lost(job: Job, how: str) -> Outcome:
    return Outcome(job.source, error=f"{shown(job.source)}: not enhanced, {how}; --jobs with fewer needs less memory")


def _perform(job: Job, enhancer: Callable[[], Enhancer], progress: bool, causal: bool) -> Outcome:
    """Enhance one recording; raises UdseError only where the settings are wrong."""
    from udse_fast.audio.files import UnreadableError, open_recording
    from udse_fast.plots import draw_spectrograms

    with ExitStack() as stack:
        try:
            recording = stack.enter_context(open_recording(job.source))
        except UdseError as error:
            return Outcome(job.source, error=shown_error(error), unreadable=True)
        started = time.perf_counter()
        loaded = enhancer()
        ready = time.perf_counter()
        try:
            panels = _enhance_recording(loaded, recording, job, progress, causal)
            wall = time.perf_counter() - ready
            if job.plot is not None:
                draw_spectrograms(job.plot, panels)
        except UdseError as error:
            return Outcome(job.source, error=shown_error(error), unreadable=isinstance(error, UnreadableError))
        return Outcome(job.source, job.out, recording.seconds_read, wall, ready - started)


def shown_error(error: UdseError) -> str:
    """The line of an error that may mention a name which is no UTF-8."""
    return str(error).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _enhance_recording(
    enhancer: Enhancer, recording: Recording, job: Job, progress: bool, causal: bool
) -> dict[str, RunningSpectrogram]:
    """The panels of the picture, if one is wanted."""
    from udse_fast.audio.files import written_audio
    from udse_fast.plots import RunningSpectrogram

    layout = recording.layout
    expected = layout.frames / layout.sample_rate
    try:
        stream = enhancer.open_stream(layout.sample_rate, layout.channels, causal=causal, whole_signal=not causal)
    except UdseError as error:
        raise UdseError(f"{job.source}: {error}") from None
    with ExitStack() as stack:
        writers = [
            stack.enter_context(written_audio(path, layout, notice, recording.source))
            for path in (job.out, job.noise_out)
            if path is not None
        ]
        panels = {
            title: RunningSpectrogram(layout.sample_rate, layout.frames)
            for title in ("before", "after")
            if job.plot is not None
        }
        advance = stack.enter_context(progress_bar(shown(job.source), expected, progress))

        def give_out(results: tuple[Any, Any]) -> None:
            for write, samples in zip(writers, results, strict=False):  # speech, and noise if it is wanted
                write(samples)
            if panels:
                panels["after"].push(results[0])
            advance(results[0].shape[1] / layout.sample_rate, stream.real_time_factor)

        if stream.track is not None:
            stream.see(_mouths(recording))
        for chunk in recording.chunks(PUSH_SECONDS):
            if panels:
                panels["before"].push(chunk)
            give_out(stream.separate(chunk))
        give_out(stream.flush_separate())
    for remark in remarks_on(recording, expected):
        notice(remark)
    return panels


def _mouths(recording: Recording) -> Any:
    """The video for an audio-visual prior, (Tv, 88, 88); None, with a word to the user, where no mouth can be seen."""
    from udse_fast.video.faces import NoMouthError
    from udse_fast.video.mouths import mouth_crops

    try:
        return mouth_crops(recording.source, shown(recording.path))
    except NoMouthError as error:
        notice(f"{error}; enhanced by its sound alone")
        return None


def remarks_on(recording: Recording, expected: float) -> Iterable[str]:
    """What a user should know of a recording that was read to its end, a line each."""
    yield from recording.remarks
    if expected - recording.seconds_read > TRUNCATED_SECONDS:
        yield f"{recording.path}: truncated, it ends after {recording.seconds_read:.2f} of {expected:.2f} s"
