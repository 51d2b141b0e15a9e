"""Recordings to train on: they are found in a folder, decoded once, and cropped at random."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from udse_fast.audio.files import audio_files, open_recording, read_audio
from udse_fast.errors import UdseError

SHORTEST_SECONDS = 0.032  # one window of the STFT: shorter recordings are left out
SILENCE = 1e-4  # peak below which a recording (or crop) is not used: -80 dBFS


def recordings_in(folder: Path, listed: Path | None = None) -> list[Path]:
    """Audio files of `folder`, recursively and sorted; with `listed`, those that this text file names (one a line)."""
    if not folder.is_dir():
        raise UdseError(f"expected a folder of recordings, got {folder}; give an existing folder")
    if listed is not None:
        try:
            names = [line.strip() for line in listed.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UdseError(f"expected a readable list of file names, got {listed} ({error})") from None
        files = [folder / name for name in names if name]
        missing = [f for f in files if not f.is_file()]
        if missing:
            raise UdseError(f"{listed} names {len(missing)} files that are not in {folder} (first: {missing[0].name})")
    else:
        files = audio_files(folder)
    if not files:
        raise UdseError(f"expected audio files in {folder}, found none; give a folder of wav, flac or opus files")
    return files


def speaker_of(path: Path, folder: Path) -> str:
    """Name the speaker: the recording's folder below `folder`, else its name up to the first '_'."""
    relative = path.relative_to(folder)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem.split("_")[0]


def split_speakers(files: list[Path], folder: Path, share: float) -> tuple[list[Path], list[Path]]:
    """Split into (training, validation) files with no speaker in both; about `share` of them validate."""
    speakers = sorted({speaker_of(f, folder) for f in files})
    if len(speakers) < 2:
        raise UdseError(
            f"expected recordings of two or more speakers in {folder} (one folder or file-name prefix each), "
            f"got {len(speakers)}; give --valid-speech / --valid-noise a folder of its own"
        )
    held_out = set(speakers[:: max(2, round(1 / share))])
    return (
        [f for f in files if speaker_of(f, folder) not in held_out],
        [f for f in files if speaker_of(f, folder) in held_out],
    )


@dataclass(frozen=True)
class Place:
    """Where an excerpt is from."""

    recording: int
    """Its number."""
    start: int
    """In samples of it; may be before its beginning."""
    length: int
    """In samples of it, as fast as it was recorded."""


@dataclass(frozen=True)
class Crops:
    """Random excerpts: audio (N, L) float32, and `peak` (N,), the largest sample of each whole recording."""

    audio: NDArray[np.float32]
    peak: NDArray[np.float32]
    places: list[Place] = field(default_factory=list)


class Corpus:
    """Mono recordings at `sample_rate`; decoded on first use and kept as 16-bit integers up to `cache_bytes`."""

    def __init__(self, files: Iterable[Path], sample_rate: int, cache_bytes: int = 8 << 30) -> None:
        given = list(files)
        self.files: list[Path] = []
        self.sample_rate = sample_rate
        self._cache: dict[int, NDArray[np.int16]] = {}
        self._cache_room = cache_bytes
        seconds = []
        for path in given:
            with open_recording(path) as recording:
                length = recording.layout.frames / recording.layout.sample_rate
            if length >= SHORTEST_SECONDS:
                self.files.append(path)
                seconds.append(length)
        if not self.files:
            raise UdseError(
                f"expected recordings of {SHORTEST_SECONDS:g} s or more, got {len(given)} shorter ones "
                f"(first: {given[0]}); give longer ones"
            )
        self.seconds = float(sum(seconds))
        self._cumulative = np.cumsum(seconds) / self.seconds
        if not any(map(self._sounds, range(len(self.files)))):  # ends at the first that does
            raise UdseError(
                f"expected recordings with sound, got {len(self.files)} silent ones (first: {self.files[0]}); "
                "give others"
            )

    def _sounds(self, index: int) -> bool:
        samples = self.recording(index)
        return bool(samples.size and max(int(samples.max()), -int(samples.min())) > SILENCE * 32768)

    def recording(self, index: int) -> NDArray[np.int16]:
        """Return the samples of file `index`, (L,) int16."""
        if index in self._cache:
            return self._cache[index]
        audio, rate = read_audio(self.files[index])
        mono = audio.mean(1)
        if rate != self.sample_rate:
            mono = soxr.resample(mono, rate, self.sample_rate)
        samples = np.clip(np.rint(mono * 32767), -32768, 32767).astype(np.int16)
        if samples.nbytes <= self._cache_room:
            self._cache_room -= samples.nbytes
            self._cache[index] = samples
        return samples

    def crops(self, rng: np.random.Generator, count: int, length: int, speed_range: float = 0.0) -> Crops:
        """Draw `count` excerpts of `length` samples, from recordings in proportion to their length.

        A crop may reach a quarter of its length over either end of the recording (zeros there), so that onsets,
        ends and silence are learnt too. It is played up to `speed_range` (a share) faster or slower: other voices.
        """
        audio = np.zeros((count, length), np.float32)
        peak = np.zeros(count, np.float32)
        places = []
        for row in range(count):
            speed = 1 + rng.uniform(-speed_range, speed_range) if speed_range else 1.0
            audio[row], peak[row], place = self._crop(rng, length, speed)
            places.append(place)
        return Crops(audio, peak, places)

    def _crop(self, rng: np.random.Generator, played: int, speed: float) -> tuple[NDArray[np.float32], float, Place]:
        """Draw `played` samples from one recording; return them with the peak of the whole recording."""
        length = round(played * speed)
        index, start = self.place(rng, length)
        excerpt = self.excerpt(index, start, length)
        if speed != 1:
            resampled = soxr.resample(excerpt, speed, 1, "MQ")[:played]
            excerpt = np.pad(resampled, (0, played - len(resampled)))
        peak = np.abs(self.recording(index).astype(np.float32)).max() / 32768
        return np.asarray(excerpt, np.float32), float(peak), Place(index, start, length)

    def place(self, rng: np.random.Generator, length: int) -> tuple[int, int]:
        """Draw a recording, in proportion to its length, and the first of `length` samples in it."""
        for _ in range(20):  # a crop of digital silence teaches nothing: draw again
            index = int(np.searchsorted(self._cumulative, rng.random()).clip(0, len(self.files) - 1))
            whole = self.recording(index)
            start = int(rng.integers(-length // 4, max(1, len(whole) - 3 * length // 4)))
            if np.abs(self.excerpt(index, start, length)).max() > SILENCE:
                break
        return index, start

    def excerpt(self, index: int, start: int, length: int) -> NDArray[np.float32]:
        """`length` samples of a recording from `start` on, which may be negative; zeros where it has none."""
        offset = max(0, -start)
        samples = self.recording(index)[max(0, start) : start + length].astype(np.float32) / 32768
        return np.pad(samples, (offset, length - offset - len(samples)))
