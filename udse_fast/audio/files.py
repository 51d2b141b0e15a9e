"""Audio files in constant memory: read in chunks, written in the layout they came in, whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from udse_fast.audio.inputs import opened
from udse_fast.audio.layout import CONTAINERS, MULTIMEDIA, SUFFIXES, Layout, container_of, output_layout
from udse_fast.audio.multimedia import MultimediaReader, MultimediaWriter, has_other_tracks, lossy_facts
from udse_fast.audio.outputs import is_special, result_file
from udse_fast.audio.riff import append_chunks, data_of_unknown_size, is_wave, other_chunks
from udse_fast.errors import UdseError, reason

__all__ = [
    "CONTAINERS", "MULTIMEDIA", "Layout", "Recording", "UnreadableError", "audio_files", "container_of",
    "open_recording", "output_layout", "read_audio", "written_audio",
]  # fmt: skip

CHUNK_SECONDS = 10.0
MOST_SAMPLES = 1 << 24  # at a time: headers may say any rate
_WRITE_FRAMES = 4096  # libsndfile's Vorbis encoder takes the whole of a call onto the stack
_LONGER = re.compile(r"\b(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")
_STREAMED = 0x7FFFF000  # the least size of the data by which programs that write to pipes say that they do not know
_UNKNOWN_FRAMES = 1 << 48  # at and above: libsndfile does not know
_NO_AUDIO = "expected audio (wav, flac, ogg, opus, mp3, m4a, aiff, ...)"


class UnreadableError(UdseError):
    """An input that is not there, no audio, or damaged."""


def audio_files(folder: Path) -> list[Path]:
    """Recordings of a folder by their extensions, recursively and sorted; hidden ones are left out.

    Links to folders are entered, unless they lead back to a folder that they are in.
    """
    return [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES]


def files_below(folder: Path) -> list[Path]:
    """All files of a folder that are not hidden, recursively and sorted."""
    found: list[Path] = []

    def enter(below: Path, above: tuple[tuple[int, int], ...]) -> None:
        status = below.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for path in below.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                with suppress(PermissionError):
                    enter(path, (*above, here))
            elif path.is_file() or path.is_symlink():  # a link to nothing is told when it is read
                found.append(path)

    enter(folder, ())
    return sorted(found)


class _Reader(Protocol):
    """What decodes."""

    layout: Layout

    def read(self, frames: int) -> NDArray[Any]:
        """About so many frames (n, channels) int16 or float32; none at the end."""

    def close(self) -> None:
        """No more is read."""


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """soundfile seeks to where it is after every read, which decoders of files of unknown length refuse."""

    def seekable(self) -> bool:
        return False


class _SoundfileReader:
    """What libsndfile reads."""

    def __init__(self, file: IO[bytes]) -> None:
        # both read the same open file: one after the other
        ogg = os.pread(file.fileno(), 4, 0) == b"OggS"
        bit_rate, tags, chapters = lossy_facts(file) if ogg else (None, {}, [])
        file.seek(0)
        # by number: a name that is no UTF-8 could not be passed on, and one that ends in .raw would ask for its rate
        self._file = f = _Sequential(os.dup(file.fileno()), closefd=True)
        tags = tags or f.copy_metadata()
        self.layout = Layout(f.samplerate, f.channels, _frames(f), f.format, f.subtype, tags, bit_rate, chapters)

    def read(self, frames: int) -> NDArray[Any]:
        samples: NDArray[Any] = self._file.read(frames, dtype=self.layout.dtype, always_2d=True)
        return samples

    def close(self) -> None:
        self._file.close()


class Recording:
    """An open recording."""

    def __init__(self, path: Path, source: IO[bytes]) -> None:
        self.path, self.source = path, source
        self.remarks: list[str] = []
        """What the user should know of the file, a line each."""
        self._reader = _reader(path, source, self.remarks)
        if not 0 <= self._reader.layout.frames < _UNKNOWN_FRAMES or isinstance(self._reader, MultimediaReader):
            self._count()
        self.layout = self._reader.layout
        self.frames_read = 0

    def _count(self) -> None:
        """Read once what does not say its length: everything that depends on it can then be right from the start."""
        reader = self._reader
        if isinstance(reader, MultimediaReader) and reader.frames is not None:
            return
        frames = 0
        with suppress(*_codec_errors()):
            while read := len(reader.read(1 << 16)):
                frames += read
        reader.close()
        self._reader = _reader(self.path, self.source, [])
        self._reader.layout = replace(self._reader.layout, frames=frames)

    def chunks(self, seconds: float = CHUNK_SECONDS) -> Iterator[NDArray[Any]]:
        """(channels, n) int16 or float32, until the end of the file.

        Raises:
            UnreadableError: no audio in the file, damaged data, NaN or infinity.
        """
        length = max(1, min(round(seconds * self.layout.sample_rate), MOST_SAMPLES // self.layout.channels))
        while True:
            try:
                chunk = self._reader.read(length)
            except _codec_errors() as error:
                raise UnreadableError(
                    f"{self.path}: expected audio, got damaged data after {self._where()} ({reason(error)}); "
                    "copy or download it again, or rescue what is there with ffmpeg -i"
                ) from None
            if not np.isfinite(chunk).all():
                frame, channel = np.argwhere(~np.isfinite(chunk))[0]
                self.frames_read += int(frame)
                raise UnreadableError(
                    f"{self.path}: expected finite samples, got {chunk[frame, channel]} at {self._where()} "
                    f"in channel {channel + 1}; repair the file first"
                )
            self.frames_read += len(chunk)
            if not len(chunk):
                break
            yield np.ascontiguousarray(chunk.T)
        if not self.frames_read:
            raise UnreadableError(f"{self.path}: expected audio, got a file without samples")

    @property
    def seconds_read(self) -> float:
        return self.frames_read / self.layout.sample_rate

    def _where(self) -> str:
        return f"{self.seconds_read:.3f} s"

    def close(self) -> None:
        self._reader.close()


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Open a recording; its content says what it is, not its name. Pipes are read to their end first.

    Raises:
        UnreadableError: missing, unreadable, or not audio.
    """
    try:
        source = opened(path)
    except UdseError as error:
        raise UnreadableError(str(error)) from None
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise UnreadableError(f"{path}: {told}; expected a readable audio file") from None
    with source:
        recording = Recording(path, source)
        try:
            yield recording
        finally:
            recording.close()


def read_audio(path: Path) -> tuple[NDArray[np.float32], int]:
    """A whole recording (L, channels) with full scale 1, and its sample rate in Hz.

    Raises:
        UnreadableError: missing, unreadable, damaged or not audio.
    """
    with open_recording(path) as recording:
        samples = np.concatenate(list(recording.chunks()), axis=1).T
        rate = recording.layout.sample_rate
    return (samples / np.float32(32768) if samples.dtype == np.int16 else samples), rate


def _reader(path: Path, source: IO[bytes], remarks: list[str]) -> _Reader:
    """By content: libsndfile where it knows the container, PyAV for the others and for MP3, of which libsndfile's
    decoder complains on stderr."""
    try:
        head = source.read(12) if source.seek(0) == 0 else b""
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}; expected a readable audio file") from None
    if not head:
        raise UnreadableError(f"{path}: expected audio, got an empty file")
    if path.suffix.lower() == ".raw":
        raise UnreadableError(f"{path}: a raw file does not say its sample rate; pipe it through udse-fast stream")
    readers: list[Callable[[IO[bytes]], _Reader]] = [_SoundfileReader, MultimediaReader]
    if is_wave(head) and data_of_unknown_size(source):
        remarks.append(f"{path}: its header says 0 bytes of audio, as that of a pipe does; read to the end of the file")
        readers = [MultimediaReader]
    elif head.startswith(b"ID3") or (head[0] == 0xFF and len(head) > 1 and head[1] >= 0xE0):
        readers = [MultimediaReader]
    told = ""
    for reader in readers:
        try:
            opened_reader = reader(source)
            if opened_reader.layout.sample_rate > 0:
                return opened_reader
            opened_reader.close()
            told = told or f"a sample rate of {opened_reader.layout.sample_rate} Hz"
        except _codec_errors() as error:
            told = told or reason(error)
    raise UnreadableError(f"{path}: {_NO_AUDIO}, got something else ({_looks_like(head) or told}); convert it first")


def _looks_like(head: bytes) -> str:
    """What users mistake for audio most often."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doc", b"<htm", b"<?xml", b"<head")):
        return "a web page; was the download refused?"
    return "text" if all(byte in b"\t\r\n" or 0x20 <= byte < 0x7F for byte in head) and head[:4] != b"RIFF" else ""


def _codec_errors() -> tuple[type[Exception], ...]:
    import av

    # the last: soundfile asserts that all was written
    return (soundfile.SoundFileError, av.FFmpegError, OSError, ValueError, TypeError, AssertionError)


def _frames(file: Any) -> int:
    """As the header says. libsndfile counts what is there, and notes in its log where the header says more."""
    if noted := _LONGER.search(file.extra_info):
        said, there = int(noted[1]), int(noted[2])
        if 0 < there < said < _STREAMED:
            return round(file.frames * said / there)
    return int(file.frames)


class _SoundfileWriter:
    """What libsndfile writes."""

    def __init__(self, temporary: Path, container: str, subtype: str, source: Layout) -> None:
        self._file = soundfile.SoundFile(
            os.fsencode(temporary), "w", source.sample_rate, source.channels, subtype, format=container
        )
        for name, value in source.metadata.items():
            if (tag := {"track": "tracknumber"}.get(name, name)) in _TAGS:
                with suppress(soundfile.SoundFileError):  # not every container has every tag
                    setattr(self._file, tag, value)

    def write(self, samples: NDArray[Any]) -> None:
        for start in range(0, len(samples), _WRITE_FRAMES):
            self._file.write(samples[start : start + _WRITE_FRAMES])

    def close(self) -> None:
        self._file.close()


class _MultimediaWriter(MultimediaWriter):
    """What PyAV writes, with the file that it goes to."""

    def __init__(
        self, temporary: Path, container: str, subtype: str, source: Layout, beside: IO[bytes] | None = None
    ) -> None:
        self._open = open(temporary, "w+b")  # noqa: SIM115
        try:
            super().__init__(self._open, container, subtype, source, beside)
        except BaseException:
            self._open.close()
            raise

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._open.close()


@contextmanager
def written_audio(
    path: Path, source: Layout, notice: Callable[[str], None], beside: IO[bytes] | None = None
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """A function that appends (channels, n) to `path`, which appears when all is written.

    Args:
        source: layout to keep.
        notice: is told in one line what could not be kept.
        beside: the open source, whose further chunks (bext, cue, tags) go from a WAV file into a WAV file.

    Raises:
        UdseError: no such container or rate in it, or the file cannot be written.
    """
    name = path if not is_special(path) or path.suffix else path.with_name(path.name + source.suffix)
    container, subtype, lost = output_layout(name, source)
    more = other_chunks(beside) if beside is not None and container in ("WAV", "WAVEX", "RF64") else []
    kept = replace(source, metadata={}) if more else source
    with result_file(path) as temporary:
        try:
            writer, pictures_kept = _writer(temporary, container, subtype, kept, beside)
        except _codec_errors() as error:
            raise UdseError(
                f"{path}: {container} {subtype} does not hold {source.channels} channels at "
                f"{source.sample_rate} Hz ({reason(error)}); use another extension, such as .wav"
            ) from None
        if lost:
            notice(f"{path}: {lost}")
        if not pictures_kept:
            notice(f"{path}: pictures or subtitles of the source do not go into {container}, left out")
        clipped = 0

        def write(samples: NDArray[Any]) -> None:
            nonlocal clipped
            if samples.dtype.kind == "f" and subtype not in _UNBOUNDED:
                clipped += int((np.abs(samples) > 1).sum())
            with _writing(path):
                writer.write(np.ascontiguousarray(samples.T))

        try:
            yield write
        except BaseException:
            with suppress(Exception):
                writer.close()
            raise
        with _writing(path):
            writer.close()
        if more and beside is not None and not append_chunks(temporary, beside, more):
            notice(f"{path}: too long for {', '.join(chunk.name.decode() for chunk in more)}, left out")
        if clipped:
            notice(f"{path}: {clipped} samples are above full scale and were clipped; a .wav of FLOAT would keep them")


def _writer(
    temporary: Path, container: str, subtype: str, source: Layout, beside: IO[bytes] | None
) -> tuple[_SoundfileWriter | _MultimediaWriter, bool]:
    """What writes such a file, and whether it keeps all of the source that is not sound."""
    if container in MULTIMEDIA.values() and beside is not None and has_other_tracks(beside):
        try:
            return _MultimediaWriter(temporary, container, subtype, source, beside), True
        except _codec_errors():
            return _MultimediaWriter(temporary, container, subtype, source), False
    if container in MULTIMEDIA.values() or subtype in ("OPUS", "MPEG_LAYER_III"):
        return _MultimediaWriter(temporary, container, subtype, source), True
    return _SoundfileWriter(temporary, container, subtype, source), True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except _codec_errors() as error:
        raise UdseError(f"{path}: cannot write ({reason(error)}); is the disk full?") from None


_TAGS = frozenset(("title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber",
                   "genre"))  # fmt: skip
"""Those that libsndfile knows."""
_UNBOUNDED = ("FLOAT", "DOUBLE", "VORBIS", "OPUS", "AAC", "MPEG_LAYER_III")
"""Subtypes that hold samples above full scale."""
