"""What `udse-fast enhance` reads and where its results go: checked before the first recording is enhanced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from udse_fast.errors import UdseError


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

    def absolute(self) -> Job:
        """The same from whatever folder it is looked at."""
        noise_out, plot = (None if path is None else path.absolute() for path in (self.noise_out, self.plot))
        return Job(self.source.absolute(), self.out.absolute(), noise_out, plot)


@dataclass(frozen=True)
class Outcome:
    """What became of one input; `error` is None, or the line that says why there is no result."""

    source: Path
    out: Path | None = None
    seconds: float = 0.0
    wall_seconds: float = 0.0
    """Of the enhancement, without `loading_seconds` and the picture."""
    loading_seconds: float = 0.0
    """Of the Enhancer, before the first recording."""
    error: str | None = None
    unreadable: bool = False
    """The input is the reason."""


def shown(path: Path) -> str:
    """A name for a terminal or log: bytes that are no UTF-8 are escaped."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def plan(
    inputs: Iterable[str], out: str, noise_out: str | None = None, plot: str | None = None
) -> tuple[list[Job], list[Outcome], list[str]]:
    """(what to do, inputs that are not there, remarks on what is left out); folders of the results are made.

    Args:
        inputs: files, folders, "-" for standard input.
        out: a file for one input, "-" for standard output, else a folder: one that exists, one by the slash at its
            end, or the place of several inputs.

    Raises:
        UdseError: nothing to do, results that would replace inputs or each other, names that cannot be written.
    """
    given = [_named(text) for text in inputs]
    place = _Places(single=len(given) == 1 and not given[0].is_dir())
    results = [Path(target) for target in (out, noise_out) if target]
    sources: list[tuple[Path, Path]] = []
    missing, remarks = [], []
    for path in given:
        try:
            found, left_out = _sources(path, results)
        except UdseError as error:
            if len(given) == 1:
                raise
            missing.append(Outcome(path, error=str(error), unreadable=True))
        else:
            sources += found
            if left_out:
                names = ", ".join(shown(name.relative_to(path)) for name in left_out[:3])
                more = ", ..." if len(left_out) > 3 else ""
                remarks.append(
                    f"{shown(path)}: left out {len(left_out)} files without an audio extension: {names}{more}"
                )
    jobs = _jobs(sources, place, out, noise_out, plot)
    _check_targets(jobs, [source for source, _ in sources])
    for folder in {target.parent for job in jobs for target in job.targets}:
        folder.mkdir(parents=True, exist_ok=True)
    return jobs, missing, remarks


def _named(text: str) -> Path:
    from udse_fast.audio.inputs import STDIN

    if not text:
        raise UdseError("expected the name of a recording or folder, got an empty one (an empty variable?)")
    return STDIN if text == "-" else Path(text)


def _sources(given: Path, results: list[Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """(file, its name below an output folder) of one argument, and files that are left out.

    Results of an earlier run are not among them.
    """
    from udse_fast.audio.files import files_below
    from udse_fast.audio.inputs import STDIN
    from udse_fast.audio.layout import SUFFIXES

    if given == STDIN:
        return [(given, Path("stdin"))], []
    if not given.is_dir():
        if not given.exists():
            raise UdseError(f"{given}: expected a recording or a folder, found nothing of that name")
        return [(given, Path(given.name))], []
    earlier = {path.resolve() for path in results} - {given.resolve()}
    found = [path for path in files_below(given) if earlier.isdisjoint(path.resolve().parents)]
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not files:
        raise UdseError(
            f"{given}: expected audio files (wav, flac, ogg, opus, mp3, m4a, aiff, ...) in the folder, found none"
        )
    left_out = [path for path in found if path.suffix.lower() not in SUFFIXES]
    return [(path, path.relative_to(given)) for path in files], left_out


class _Places:
    """Where results of one kind go: the file or folder that was asked for."""

    def __init__(self, single: bool) -> None:
        self.single = single

    def of(self, target: str | None, name: Path) -> Path | None:
        """The place of the result for an input called `name`.

        Raises:
            UdseError: no folder where one is needed, or a file where several results go.
        """
        from udse_fast.audio.layout import CONTAINERS, MULTIMEDIA
        from udse_fast.audio.outputs import STDOUT, is_special

        if target is None:
            return None
        if not target:
            raise UdseError("expected the name of a file or folder to write, got an empty one")
        path = STDOUT if target == "-" else Path(target)
        if is_special(path):
            if not self.single:
                raise UdseError(f"{target}: expected a folder for several inputs, got a pipe or device")
            return path
        if path.is_dir():
            return path / name
        if self.single and not target.endswith("/"):
            if not path.parent.is_dir():
                raise UdseError(f"cannot write {path}: there is no folder {path.parent}; make it first")
            return path
        if path.exists() or (not self.single and path.suffix.lower() in (*CONTAINERS, *MULTIMEDIA, ".png")):
            raise UdseError(f"{path}: expected a folder for several inputs, got a file or the name of one")
        return path / name


def _jobs(
    sources: list[tuple[Path, Path]], place: _Places, out: str, noise_out: str | None, plot: str | None
) -> list[Job]:
    from udse_fast.audio.layout import is_writable

    jobs = []
    pictures = Counter(name.with_suffix(".png") for _, name in sources)
    taken = {name for _, name in sources if is_writable(name)}
    for source, name in sources:
        picture = name.with_suffix(".png")
        if pictures[picture] > 1:  # a.wav and a.flac
            picture = name.with_name(f"{name.name}.png")
        result = name
        if not is_writable(name):  # a codec that is read only
            result = name.with_suffix(".wav")
            if result in taken:
                result = name.with_name(f"{name.name}.wav")
            taken.add(result)
        target = place.of(out, result)
        assert target is not None
        jobs.append(Job(source, target, place.of(noise_out, result), place.of(plot, picture)))
    return jobs


def _check_targets(jobs: list[Job], sources: list[Path]) -> None:
    from udse_fast.audio.layout import container_of
    from udse_fast.audio.outputs import STDOUT, is_special
    from udse_fast.plots import check_plotting

    taken = {source.resolve() for source in sources}
    for job in jobs:
        if job.targets.count(STDOUT) > 1:
            raise UdseError("-: expected one result on standard output, got several; give the others names")
        for target in job.targets:
            if is_special(target):
                continue
            if target.resolve() in taken:
                raise UdseError(
                    f"{target}: expected a name of its own for every output, got that of an input or of "
                    "another output; give other names or folders"
                )
            taken.add(target.resolve())
        for sound in (job.out, job.noise_out):
            if sound is not None and not is_special(sound):
                container_of(sound)
        if job.plot is not None:
            check_plotting(job.plot)
