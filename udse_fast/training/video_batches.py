"""Training batches of talking faces: crops of the sound, and the mouth that belongs to each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast.audio.files import files_below
from udse_fast.errors import UdseError
from udse_fast.networks.visual_encoder import VIDEO_RATE
from udse_fast.training.batches import Batch, Batches
from udse_fast.training.corpus import Corpus, Place
from udse_fast.video.mouths import read_mouth_crops
from udse_fast.video.pictures import SUFFIXES

VIDEO_DROPOUT = 0.2
"""Share of the items that are told no video, so that the network can do without."""


def videos_in(folder: Path) -> list[Path]:
    """Video files of a folder, recursively and sorted.

    Raises:
        UdseError: there is none.
    """
    if not folder.is_dir():
        raise UdseError(f"expected a folder of videos, got {folder}; give an existing folder")
    files = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise UdseError(f"expected videos with sound in {folder}, found none; give a folder of mp4, mkv or mov files")
    return files


class VideoCorpus(Corpus):
    """The sound of videos, as of a `Corpus`, and the mouths in them."""

    def __init__(self, files: Iterable[Path], sample_rate: int) -> None:
        super().__init__(files, sample_rate)
        self._mouths: dict[int, NDArray[np.uint8]] = {}

    def mouths(self, index: int) -> NDArray[np.uint8]:
        """Crops of file `index`, (Tv, 88, 88), decoded on first use and kept."""
        if index not in self._mouths:
            self._mouths[index] = read_mouth_crops(self.files[index])
        return self._mouths[index]

    def frames(self, places: Sequence[Place], count: int) -> NDArray[np.uint8]:
        """The mouths of excerpts, (N, count, 88, 88), spread evenly; beyond its ends a video stands still."""
        rows = []
        for place in places:
            seconds = (place.start + place.length * (np.arange(count) + 0.5) / count) / self.sample_rate
            video = self.mouths(place.recording)
            rows.append(video[np.clip(np.floor(seconds * VIDEO_RATE + 1e-6).astype(int), 0, len(video) - 1)])
        return np.stack(rows)


class VideoBatches(Batches):
    """The batches of a run by number, as `Batches`, with what the network sees.

    Args:
        corpus: sound and pictures.
        dropout: share of the items that are told no video.
        arguments: of `Batches`.
    """

    def __init__(self, corpus: VideoCorpus, *arguments: object, dropout: float = VIDEO_DROPOUT, **named: object):
        super().__init__(corpus, None, *arguments, **named)  # type: ignore[arg-type]
        self.corpus, self.dropout = corpus, dropout

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        length = (self.frames - 1) * self.spectral.hop_length
        crops = self.corpus.crops(rng, self.size, length, self.augmentation.speed_range)
        spectrograms = self.spectrograms(rng, crops)
        count = max(1, round(length / self.spectral.sample_rate * VIDEO_RATE))
        frames = torch.from_numpy(self.corpus.frames(crops.places, count))
        sees = torch.from_numpy((rng.random(self.size) >= self.dropout).astype(np.float32))
        return Batch(spectrograms, frames=frames, sees=sees)
