"""Audio files in constant memory: read in chunks, written in the layout they came in, whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from udse_fast.atomic import atomic_write
from udse_fast.errors import UdseError, reason

CONTAINERS = {
    **{f".{name.lower()}": name for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "RF64", "W64")},
    **{".aif": "AIFF", ".aifc": "AIFF", ".oga": "OGG", ".opus": "OGG"},
    **{".snd": "AU", ".sph": "NIST", ".nist": "NIST"},
}
"""Extension -> libsndfile's name of the container."""

CHUNK_SECONDS = 10.0
_WAV_LIMIT = 0xFFFFFFFF - 1024  # bytes that the header of a WAV file can count
_WRITE_FRAMES = 4096  # libsndfile's Vorbis encoder takes the whole of a call onto the stack
_LONGER = re.compile(r"\b(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")
_STREAMED = 0x7FFFF000  # the least size of the data by which programs that write to pipes say that they do not know
_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


def audio_files(folder: Path) -> list[Path]:
    """Audio files of a folder, recursively and sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in CONTAINERS and not path.name.startswith(".") and path.is_file()
    )


@dataclass(frozen=True)
class Layout:
    """How a recording is stored."""

    sample_rate: int
    channels: int
    frames: int
    """As the header says; a truncated file has less."""
    container: str
    subtype: str
    metadata: dict[str, str]

    @property
    def dtype(self) -> str:
        """What to read: 16-bit integers as they are, all others as float32, full scale 1."""
        return "int16" if self.subtype == "PCM_16" else "float32"


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """soundfile seeks to where it is after every read, and MP3 decoders lose their state with it."""

    def seekable(self) -> bool:
        return False


class Recording:
    """An open audio file."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        self.layout = Layout(
            file.samplerate, file.channels, _frames(file), file.format, file.subtype, file.copy_metadata()
        )
        self.frames_read = 0

    def chunks(self, seconds: float = CHUNK_SECONDS) -> Iterator[NDArray[Any]]:
        """(channels, n) int16 or float32, until the end of the file.

        Raises:
            UdseError: no audio in the file, damaged data, NaN or infinity.
        """
        length = max(1, round(seconds * self.layout.sample_rate))
        while True:
            try:
                chunk = self._file.read(length, dtype=self.layout.dtype, always_2d=True)
            except (soundfile.SoundFileError, OSError) as error:
                raise UdseError(
                    f"{self.path}: expected audio, got damaged data after {self._where()} ({reason(error)}); "
                    "copy or download it again, or rescue what is there with ffmpeg -i"
                ) from None
            if not np.isfinite(chunk).all():
                frame, channel = np.argwhere(~np.isfinite(chunk))[0]
                self.frames_read += int(frame)
                raise UdseError(
                    f"{self.path}: expected finite samples, got {chunk[frame, channel]} at {self._where()} "
                    f"in channel {channel + 1}; repair the file first"
                )
            self.frames_read += len(chunk)
            if not len(chunk):
                break
            yield np.ascontiguousarray(chunk.T)
        if not self.frames_read:
            raise UdseError(f"{self.path}: expected audio, got a file without samples")

    @property
    def seconds_read(self) -> float:
        return self.frames_read / self.layout.sample_rate

    def _where(self) -> str:
        return f"{self.seconds_read:.3f} s"


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Open an audio file; its content says what it is, not its name.

    Raises:
        UdseError: missing, unreadable, or not audio.
    """
    if path.is_dir():
        raise UdseError(f"{path}: expected an audio file, got a folder")
    try:
        # not by name: soundfile would ask for the sample rate of whatever is called .raw
        with open(path, "rb") as raw:
            empty = not raw.read(1)
        file = _Sequential(path) if not empty and path.suffix.lower() != ".raw" else None
    except OSError as error:
        raise UdseError(f"{path}: {error.strerror or reason(error)}; expected a readable audio file") from None
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise UdseError(
            f"{path}: expected audio that libsndfile reads (wav, flac, ogg, opus, mp3, aiff, ...), "
            f"got something else ({reason(error)}); convert it first"
        ) from None
    if empty:
        raise UdseError(f"{path}: expected audio, got an empty file")
    if file is None:
        raise UdseError(f"{path}: a raw file does not say its sample rate; pipe it through udse-fast stream")
    with file:
        yield Recording(path, file)


def container_of(path: Path) -> str:
    """libsndfile's name of the container that goes with the extension."""
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise UdseError(f"{path}: expected an existing folder, or an output name that ends in {', '.join(CONTAINERS)}")
    return container


def output_layout(path: Path, source: Layout) -> tuple[str, str, str | None]:
    """(container, subtype, what could not be kept) of an output file.

    The container of the source where the extension allows it, else that of the extension; the subtype of the
    source where the container holds it, else 24 bits for finer ones, else the usual one of the container.
    """
    container = container_of(path)
    if container == "WAV" and source.container in ("WAVEX", "RF64"):
        container = source.container  # all three are called .wav
    subtypes = soundfile.available_subtypes(container)
    subtype, lost = source.subtype, None
    if path.suffix.lower() == ".opus":
        subtype = "OPUS"
    elif subtype not in subtypes:
        fine = source.subtype in ("FLOAT", "DOUBLE", "PCM_32", "PCM_24", "ALAC_24", "ALAC_32")
        subtype = "PCM_24" if fine and "PCM_24" in subtypes else soundfile.default_subtype(container)
        lost = f"{container} does not hold {source.subtype}, {subtype} instead"
    if container in ("WAV", "WAVEX") and source.frames * source.channels * _BYTES.get(subtype, 2) > _WAV_LIMIT:
        container, lost = "RF64", "longer than WAV can say, RF64 instead"
    return container, subtype, lost


@contextmanager
def written_audio(
    path: Path, source: Layout, notice: Callable[[str], None]
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """A function that appends (channels, n) to `path`, which appears when all is written.

    Args:
        source: layout to keep.
        notice: is told in one line what could not be kept.

    Raises:
        UdseError: no such container or rate in it, or the file cannot be written.
    """
    container, subtype, lost = output_layout(path, source)
    with atomic_write(path) as temporary:
        try:
            file = soundfile.SoundFile(temporary, "w", source.sample_rate, source.channels, subtype, format=container)
        except (soundfile.SoundFileError, ValueError, TypeError) as error:
            raise UdseError(
                f"{path}: {container} {subtype} does not hold {source.channels} channels at "
                f"{source.sample_rate} Hz ({reason(error)}); use another extension, such as .wav"
            ) from None
        if lost:
            notice(f"{path}: {lost}")
        for name, value in source.metadata.items():
            with suppress(soundfile.SoundFileError):  # not every container has every tag
                setattr(file, name, value)

        def write(samples: NDArray[Any]) -> None:
            interleaved = np.ascontiguousarray(samples.T)
            for start in range(0, len(interleaved), _WRITE_FRAMES):
                part = interleaved[start : start + _WRITE_FRAMES]
                try:
                    file.write(part)
                except (soundfile.SoundFileError, AssertionError) as error:
                    raise UdseError(f"{path}: cannot write ({reason(error)}); is the disk full?") from None

        try:
            yield write
        finally:
            file.close()


def _frames(file: Any) -> int:
    """As the header says. libsndfile counts what is there, and notes in its log where the header says more."""
    if noted := _LONGER.search(file.extra_info):
        said, there = int(noted[1]), int(noted[2])
        if there < said < _STREAMED:
            return round(file.frames * said / there)
    return int(file.frames)
