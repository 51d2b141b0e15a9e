"""`udse-fast separate`: one file for each talker of a recording, and one for the noise."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udse_fast.commands.enhance import PUSH_SECONDS, remarks_on, shown_error
from udse_fast.commands.jobs import shown
from udse_fast.commands.options import other_settings, set_threads
from udse_fast.commands.progress import progress_bar
from udse_fast.errors import UdseError, notice, report_error

if TYPE_CHECKING:
    from udse_fast.audio.files import Recording
    from udse_fast.separator import Separator

OPTIONS = ("checkpoint", "noise_checkpoint", "sampler", "steps", "guidance", "zeta", "solver", "rule", "seed", "device")
"""Of the command that are settings of `Separator`, in its spelling."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="IN", help="recordings of several talkers, in any format")
    add("-o", "--out", type=Path, required=True, metavar="DIR",
        help="folder for IN_talker_1, ..., IN_noise, which add up to IN and keep its format")  # fmt: skip
    add("--sources", default="2", metavar="K|NAMES",
        help="number of talkers, or their names with commas between them (default: %(default)s)")  # fmt: skip
    add("--video", nargs="+", default=[], metavar="FILE",
        help="of each talker's face or mouth crops, in the order of --sources; for audio-visual priors")  # fmt: skip
    add("--json", action="store_true", help="one JSON object on stdout instead of lines")
    add("--progress", action=argparse.BooleanOptionalAction, help="progress bar (default: on a terminal)")
    add = parser.add_argument_group("priors and sampler").add_argument
    add("--checkpoint", metavar="FILE", help="prior of the talkers (default: the built-in prior of speech)")
    add("--noise-checkpoint", metavar="FILE", help="prior of the noise (default: the built-in joint prior)")
    add("--sampler", metavar="NAME", help="shares (default), or dps: posterior sampling by coupled ODEs (DAVSS-NM)")
    add("--steps", type=int, metavar="N", help="each is a network call of every source (default: 6; dps: 30)")
    add("--guidance", type=float, metavar="W", help="how much is made of the videos (default: 2; dps: 0.5)")
    add("--zeta", type=float, metavar="Z", help="dps: weight of the mixture against the priors (default: 0.5)")
    add("--solver", metavar="NAME", help="dps: euler (default), or heun: two evaluations a step")
    add("--rule", metavar="NAME", help="dps: how the likelihood is scaled: joint (default), gradient, residual")
    add("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="another setting, e.g. sharpness=1, block_seconds=4, highest_level=0.8; may be repeated")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1, auto (default)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


@dataclass
class Separation:
    """What became of one recording; `error` is None, or the line that says why there is no result."""

    source: Path
    outputs: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0
    wall_seconds: float = 0.0
    error: str | None = None


def run(arguments: argparse.Namespace) -> int:
    """Separate everything; what fails is named and the others go on. 0, or 2 if something failed."""
    separator = make_separator(arguments)
    jobs = _planned([Path(name) for name in arguments.inputs], arguments.out, separator.names)
    video = _videos(arguments.video, len(jobs), separator.names[:-1])
    watched = sys.stderr is not None and sys.stderr.isatty()
    progress = watched if arguments.progress is None else arguments.progress
    for job in jobs:
        started = time.perf_counter()
        try:
            job.seconds = _separate_file(separator, job, video, progress)
        except UdseError as error:
            job.error, job.outputs = shown_error(error), {}
            report_error(job.error)
        job.wall_seconds = time.perf_counter() - started
        if job.error is None and not arguments.json:
            names = ", ".join(shown(path) for path in job.outputs.values())
            print(f"{shown(job.source)} -> {names}: {job.seconds:.2f} s in {job.wall_seconds:.2f} s, "
                  f"RTF {job.wall_seconds / job.seconds:.2f}", flush=True)  # fmt: skip
    failed = sum(job.error is not None for job in jobs)
    if arguments.json:
        files = [_described(job) for job in jobs]
        print(json.dumps({"separated": len(jobs) - failed, "failed": failed, "files": files}, indent=1), flush=True)
    return 2 if failed else 0


def make_separator(arguments: argparse.Namespace) -> Separator:
    """The Separator that the options ask for."""
    from udse_fast.separator import Separator

    set_threads(arguments.threads)
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    talkers = arguments.sources
    sources: Any = int(talkers) if talkers.isdecimal() else [name.strip() for name in talkers.split(",")]
    return Separator(sources, **given, **other_settings(arguments, dict.fromkeys(OPTIONS)))


def _planned(inputs: list[Path], out: Path, names: tuple[str, ...]) -> list[Separation]:
    """Where everything goes; the folder is made.

    Raises:
        UdseError: an input that is not there, or results that would replace inputs or each other.
    """
    from udse_fast.audio.layout import is_writable

    taken = {path.resolve() for path in inputs}
    jobs = []
    for path in inputs:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing of that name"
            raise UdseError(f"{shown(path)}: expected a recording, found {found}")
        suffix = path.suffix if is_writable(path) else ".wav"
        outputs = {name: out / f"{path.stem}_{name}{suffix}" for name in names}
        for target in outputs.values():
            if target.resolve() in taken:
                raise UdseError(f"{shown(target)}: expected a name of its own for every output, got that of an input "
                                "or of another output; give another folder")  # fmt: skip
            taken.add(target.resolve())
        jobs.append(Separation(path, outputs))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UdseError(f"{shown(out)}: expected a folder to write to: {error.strerror}") from None
    return jobs


def _videos(paths: list[str], recordings: int, talkers: Sequence[str]) -> dict[str, Any]:
    """What is seen of each talker, by name: mouth crops.

    Raises:
        UdseError: not one video a talker, several recordings for them, or a video without a mouth.
    """
    if not paths:
        return {}
    if len(paths) != len(talkers) or recordings != 1:
        raise UdseError(f"--video: expected one recording, and a video for each of {', '.join(talkers)}, got "
                        f"{recordings} recordings and {len(paths)} videos")  # fmt: skip
    from udse_fast.video.mouths import read_mouth_crops

    return {name: read_mouth_crops(path) for name, path in zip(talkers, paths, strict=True)}


def _separate_file(separator: Separator, job: Separation, video: dict[str, Any], progress: bool) -> float:
    """Write the sources of one recording; its length in seconds."""
    from udse_fast.audio.files import open_recording, written_audio

    with open_recording(job.source) as recording, ExitStack() as stack:
        layout = recording.layout
        expected = layout.frames / layout.sample_rate
        stream = separator.open_stream(layout.sample_rate, layout.channels, video=video)
        writers = {
            name: stack.enter_context(written_audio(path, layout, notice, recording.source))
            for name, path in job.outputs.items()
        }
        advance = stack.enter_context(progress_bar(shown(job.source), expected, progress))

        def give_out(results: dict[str, Any]) -> None:
            for name, samples in results.items():
                writers[name](samples)
            advance(results["noise"].shape[1] / layout.sample_rate, stream.real_time_factor)

        for chunk in recording.chunks(PUSH_SECONDS):
            give_out(stream.process(chunk))
        give_out(stream.flush())
        _tell(recording, expected)
    return recording.seconds_read


def _tell(recording: Recording, expected: float) -> None:
    for remark in remarks_on(recording, expected):
        notice(remark)


def _described(job: Separation) -> dict[str, Any]:
    return {
        "source": str(job.source),
        "outputs": {name: str(path) for name, path in job.outputs.items()},
        "seconds": round(job.seconds, 3),
        "wall_seconds": round(job.wall_seconds, 3),
        "real_time_factor": round(job.wall_seconds / job.seconds, 4) if job.seconds else None,
        "error": job.error,
    }
