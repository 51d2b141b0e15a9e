"""`udse-fast enhance`: files and folders, of any length in constant memory."""

from __future__ import annotations

import argparse
import importlib.resources
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udse_fast.commands.options import add_enhancer_arguments, make_enhancer
from udse_fast.errors import UdseError, notice, report_error

if TYPE_CHECKING:
    from udse_fast.enhancer import Enhancer

PUSH_SECONDS = 1.0
"""Audio read at a time."""
BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s, {remaining} left{postfix}"
TRUNCATED_SECONDS = 0.1
"""Headers of lossy formats may be off by a codec frame; more than this is a truncated file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("inputs", type=Path, nargs="*", metavar="IN", help="recordings, or folders of them")
    add("--example", action="store_true", help="enhance the noisy recording that comes with the package")
    add("-o", "--out", required=True, metavar="OUT", help="file (for one input) or folder; "
        "sample rate, channels, subtype and container are kept")  # fmt: skip
    add("--noise-out", metavar="OUT", help="write what was taken away too, like -o")
    add(
        "--plot",
        metavar="FILE.png",
        help="spectrograms before and after; a folder for several inputs",
    )
    add("--causal", action="store_true", help="as a causal stream would, which looks ahead by its latency only")
    add("--progress", action=argparse.BooleanOptionalAction, help="progress bar (default: on a terminal)")
    add_enhancer_arguments(parser)


@dataclass(frozen=True)
class Job:
    """One recording and where its results go."""

    source: Path
    out: Path
    noise_out: Path | None
    plot: Path | None

    @property
    def targets(self) -> list[Path]:
        return [path for path in (self.out, self.noise_out, self.plot) if path is not None]


def run(arguments: argparse.Namespace) -> int:
    """Enhance everything; a file that fails is reported and the others go on. 0, or 2 if one failed."""
    from udse_fast.audio.files import open_recording

    with _inputs(arguments) as inputs:
        jobs = _jobs(inputs, arguments)
        if len(jobs) == 1:
            with open_recording(jobs[0].source):
                pass  # what is no audio is told before the network is loaded
        enhancer = make_enhancer(arguments)
        progress = sys.stderr.isatty() if arguments.progress is None else arguments.progress
        failed = False
        for job in jobs:
            try:
                print(_enhance_file(enhancer, job, progress, arguments.causal), flush=True)
            except UdseError as error:
                report_error(error)
                failed = True
        return 2 if failed else 0


@contextmanager
def _inputs(arguments: argparse.Namespace) -> Iterator[list[Path]]:
    if arguments.example == bool(arguments.inputs):
        raise UdseError("expected recordings or folders to enhance, or --example; see udse-fast enhance --help")
    if not arguments.example:
        yield arguments.inputs
        return
    example = importlib.resources.files("udse_fast") / "examples" / "noisy.flac"
    with importlib.resources.as_file(example) as path:
        yield [path]


def _jobs(inputs: list[Path], arguments: argparse.Namespace) -> list[Job]:
    """What to read and write; everything is checked before the first recording is enhanced."""
    from udse_fast.audio.files import CONTAINERS, container_of
    from udse_fast.plots import check_plotting

    folders = [Path(target) for target in (arguments.out, arguments.noise_out) if target is not None]
    sources = [source for given in inputs for source in _sources(given, folders)]
    single = len(inputs) == 1 and not inputs[0].is_dir()

    def place(target: str | None, name: Path) -> Path | None:
        """A folder is one that exists, one by the slash at its end, or the place of several inputs."""
        if target is None:
            return None
        if not target:
            raise UdseError("expected the name of a file or folder to write, got an empty one")
        path = Path(target)
        if path.is_dir():
            return path / name
        if single and not target.endswith("/"):
            if not path.parent.is_dir():
                raise UdseError(f"cannot write {path}: there is no folder {path.parent}; make it first")
            return path
        if path.exists() or (not single and path.suffix.lower() in (*CONTAINERS, ".png")):
            raise UdseError(f"{path}: expected a folder for several inputs, got a file or the name of one")
        return path / name

    jobs = []
    pictures = Counter(name.with_suffix(".png") for _, name in sources)
    for source, name in sources:
        out, picture = place(arguments.out, name), name.with_suffix(".png")
        if pictures[picture] > 1:  # a.wav and a.flac
            picture = name.with_name(f"{name.name}.png")
        assert out is not None
        jobs.append(Job(source, out, place(arguments.noise_out, name), place(arguments.plot, picture)))
    taken = {source.resolve() for source, _ in sources}
    for job in jobs:
        for target in job.targets:
            if target.resolve() in taken:
                raise UdseError(
                    f"{target}: expected a name of its own for every output, got that of an input or of "
                    "another output; give other names or folders"
                )
            taken.add(target.resolve())
        for sound in (job.out, job.noise_out):
            if sound is not None:
                container_of(sound)
        if job.plot is not None:
            check_plotting(job.plot)
    for folder in {target.parent for job in jobs for target in job.targets}:
        folder.mkdir(parents=True, exist_ok=True)
    return jobs


def _sources(given: Path, results: list[Path]) -> list[tuple[Path, Path]]:
    """(file, its name below an output folder) of one argument; results of an earlier run are left out."""
    from udse_fast.audio.files import audio_files

    if not given.is_dir():
        if not given.exists():
            raise UdseError(f"{given}: expected a recording or a folder, found nothing of that name")
        return [(given, Path(given.name))]
    earlier = {path.resolve() for path in results} - {given.resolve()}
    files = [path for path in audio_files(given) if earlier.isdisjoint(path.resolve().parents)]
    if not files:
        raise UdseError(
            f"{given}: expected audio files (wav, flac, ogg, opus, mp3, aiff, ...) in the folder, found none"
        )
    return [(path, path.relative_to(given)) for path in files]


def _enhance_file(enhancer: Enhancer, job: Job, progress: bool, causal: bool) -> str:
    """Enhance one recording; returns a line about it."""
    from tqdm import tqdm

    from udse_fast.audio.files import open_recording, written_audio
    from udse_fast.plots import RunningSpectrogram, draw_spectrograms

    started = time.perf_counter()
    with ExitStack() as stack:
        recording = stack.enter_context(open_recording(job.source))
        layout = recording.layout
        expected = layout.frames / layout.sample_rate
        try:
            # the result of `Enhancer.enhance`, in constant memory
            stream = enhancer.open_stream(layout.sample_rate, layout.channels, causal=causal, whole_signal=not causal)
        except UdseError as error:
            raise UdseError(f"{job.source}: {error}") from None
        writers = [
            stack.enter_context(written_audio(path, layout, notice))
            for path in (job.out, job.noise_out)
            if path is not None
        ]
        panels = {
            title: RunningSpectrogram(layout.sample_rate, layout.frames)
            for title in ("before", "after")
            if job.plot is not None
        }
        bar: Any = stack.enter_context(
            tqdm(
                total=round(expected, 1),
                desc=job.source.name,
                disable=not progress,
                leave=False,
                mininterval=0,  # a block takes seconds
                bar_format=BAR_FORMAT,
            )
        )

        def give_out(results: tuple[Any, Any]) -> None:
            for write, samples in zip(writers, results, strict=False):  # speech, and noise if it is wanted
                write(samples)
            if panels:
                panels["after"].push(results[0])
            if seconds := results[0].shape[1] / layout.sample_rate:
                bar.set_postfix_str(f"RTF {stream.real_time_factor:.2f}", refresh=False)
                bar.update(seconds)

        for chunk in recording.chunks(PUSH_SECONDS):
            if panels:
                panels["before"].push(chunk)
            give_out(stream.separate(chunk))
        give_out(stream.flush_separate())
    wall, seconds = time.perf_counter() - started, recording.seconds_read
    if expected - seconds > TRUNCATED_SECONDS:
        notice(f"{job.source}: truncated, it ends after {seconds:.2f} of {expected:.2f} s")
    if job.plot is not None:
        draw_spectrograms(job.plot, panels)
    return f"{job.source} -> {job.out}: {seconds:.2f} s in {wall:.2f} s, RTF {wall / seconds:.2f}"
