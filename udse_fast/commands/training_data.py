"""What `udse-fast train` trains on: the folders that are given, as batches of the kind that a network learns from."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udse_fast.errors import UdseError
from udse_fast.evaluation.pairs import Pair, pairs_in_folders, pairs_in_mixtures
from udse_fast.networks.base import Network
from udse_fast.tagger import Tagger
from udse_fast.training.batches import Augmentation, Batches
from udse_fast.training.conditional_batches import ConditionalBatches, MixedPairs, Pairs, RecordedPairs
from udse_fast.training.corpus import Corpus, recordings_in, split_speakers
from udse_fast.training.posterior_batches import PosteriorBatches
from udse_fast.training.video_batches import VideoBatches, VideoCorpus, videos_in

HELD_OUT = 0.04
"""Share of the speakers (or kinds of noise) for validation, where no folder is given."""


@dataclass(frozen=True)
class TrainingData:
    """Batches by number, and what they are made of."""

    training: Any
    validation: Any
    speech_seconds: float
    noise_seconds: float
    recordings: int


def check_sources(arguments: argparse.Namespace, kind: type[Network]) -> None:
    """One line where the folders are not those that a kind of network is trained on."""
    name, sources = arguments.network, (arguments.speech is not None) + (arguments.noise is not None)
    if arguments.pairs is not None and not (kind.drifts and sources == 0 and len(arguments.pairs) <= 2):
        raise UdseError(
            "--pairs: expected one folder or two, a conditional network (--network compact-conditional), and neither "
            f"--speech nor --noise, got --network {name}, {len(arguments.pairs)} folders and {sources} of them"
        )
    if kind.sees != (arguments.video is not None) or (kind.sees and sources):
        wanted = "--video DIR alone" if kind.sees else "no --video, which is for --network compact-av"
        raise UdseError(f"--network {name}: expected {wanted}, got other folders")
    if kind.drifts and arguments.pairs is None and sources < 2:
        raise UdseError(f"--network {name}: expected --pairs CLEAN NOISY, or --speech DIR and --noise DIR to be mixed")
    if arguments.tagger is not None and not kind.drifts:
        raise UdseError(f"--tagger: expected a conditional network (--network compact-conditional), got {name}")
    if not kind.drifts and not kind.sees and not sources:
        raise UdseError("train: expected --speech DIR, --noise DIR or both (a joint prior), got neither")
    if arguments.noise is not None and kind.tells_noise_variance:
        raise UdseError(f"--network {name}: expected --speech DIR alone, got --noise DIR: its noise is drawn at random")
    if arguments.batch_size < sources and not kind.drifts:
        raise UdseError(f"--batch-size: expected at least 2, a crop of each source, got {arguments.batch_size}")


def training_data(
    arguments: argparse.Namespace,
    kind: type[Network],
    frames: int,
    augmentation: Augmentation,
    tagger: Tagger | None = None,
) -> TrainingData:
    """Find the recordings and make batches of them.

    Args:
        kind: what is trained.
        frames: of a crop.
        augmentation: of the speech.
        tagger: of the recordings, for conditional networks.

    Raises:
        UdseError: folders without recordings, or recordings that cannot be used.
    """
    rate = kind.spectral.sample_rate
    if arguments.pairs is not None:
        recorded, held_out = _recorded_pairs(arguments.pairs, arguments.valid_pairs, rate)
        batches = _conditional_batches(arguments, (recorded, held_out), kind, frames, tagger)
        return TrainingData(*batches, recorded.seconds, 0.0, len(recorded.files))
    if arguments.video is not None:
        videos, held_out_videos = _videos(arguments.video, arguments.valid_video, rate)
        shown = (
            VideoBatches(
                videos, kind.spectral, size=arguments.batch_size, frames=frames, augmentation=augmentation,
                seed=arguments.seed,
            ),
            VideoBatches(
                held_out_videos, kind.spectral, size=16, frames=2 * frames, gain_range=(0.7, 0.7), seed=1, dropout=0
            ),
        )  # fmt: skip
        return TrainingData(*shown, videos.seconds, 0.0, len(videos.files))
    speech, valid_speech = _corpora(arguments.speech, arguments.speech_list, arguments.valid_speech, rate)
    noise, valid_noise = _corpora(arguments.noise, arguments.noise_list, arguments.valid_noise, rate)
    if kind.drifts:
        assert speech is not None
        assert noise is not None
        assert valid_speech is not None
        assert valid_noise is not None
        mixed = MixedPairs(speech, noise, augmentation), MixedPairs(valid_speech, valid_noise)
        batches = _conditional_batches(arguments, mixed, kind, frames, tagger)
    elif kind.tells_noise_variance:
        assert speech is not None
        assert valid_speech is not None
        batches = _posterior_batches(arguments, speech, valid_speech, kind, frames, augmentation)
    else:
        corpora = (speech, noise), (valid_speech, valid_noise)
        batches = _prior_batches(arguments, *corpora, kind, frames, augmentation)
    return TrainingData(
        *batches,
        speech_seconds=speech.seconds if speech else 0.0,
        noise_seconds=noise.seconds if noise else 0.0,
        recordings=sum(len(corpus.files) for corpus in (speech, noise) if corpus),
    )


def _corpora(
    folder: Path | None, listed: Path | None, valid: Path | None, rate: int
) -> tuple[Corpus | None, Corpus | None]:
    """Find the recordings of one source, for training and for validation."""
    if folder is None:
        return None, None
    files = recordings_in(folder, listed)
    if valid is not None:
        return Corpus(files, rate), Corpus(recordings_in(valid), rate)
    training, validation = split_speakers(files, folder, HELD_OUT)
    return Corpus(training, rate), Corpus(validation, rate)


def _videos(folder: Path, valid: Path | None, rate: int) -> tuple[VideoCorpus, VideoCorpus]:
    """Videos for training and for validation."""
    files = videos_in(folder)
    if valid is not None:
        return VideoCorpus(files, rate), VideoCorpus(videos_in(valid), rate)
    training, validation = split_speakers(files, folder, HELD_OUT)
    return VideoCorpus(training, rate), VideoCorpus(validation, rate)


def _prior_batches(
    arguments: argparse.Namespace,
    training: tuple[Corpus | None, Corpus | None],
    validation: tuple[Corpus | None, Corpus | None],
    kind: type[Network],
    frames: int,
    augmentation: Augmentation,
) -> tuple[Any, Any]:
    """Training and validation batches of a prior, from (speech, noise) of either."""
    return (
        Batches(
            *training, kind.spectral, size=arguments.batch_size, frames=frames, augmentation=augmentation,
            seed=arguments.seed,
        ),
        Batches(*validation, kind.spectral, size=16, frames=2 * frames, gain_range=(0.7, 0.7), seed=1),
    )  # fmt: skip


def _posterior_batches(
    arguments: argparse.Namespace,
    training: Corpus,
    validation: Corpus,
    kind: type[Network],
    frames: int,
    augmentation: Augmentation,
) -> tuple[Any, Any]:
    """Training and validation batches of a posterior network: mixtures with noise that is drawn, not recorded."""
    return (
        PosteriorBatches(
            training, kind.spectral, size=arguments.batch_size, frames=frames, augmentation=augmentation,
            seed=arguments.seed,
        ),
        PosteriorBatches(validation, kind.spectral, size=16, frames=2 * frames, seed=1),
    )  # fmt: skip


def _conditional_batches(
    arguments: argparse.Namespace,
    pairs: tuple[Pairs, Pairs],
    kind: type[Network],
    frames: int,
    tagger: Tagger | None,
) -> tuple[Any, Any]:
    """Training and validation batches of a conditional network."""
    training, validation = pairs
    return (
        ConditionalBatches(
            training, kind.spectral, size=arguments.batch_size, frames=frames, seed=arguments.seed, tagger=tagger
        ),
        ConditionalBatches(
            validation, kind.spectral, size=16, frames=2 * frames, gain_range=(0.7, 0.7), seed=1, tagger=tagger
        ),
    )


def _recorded_pairs(
    folders: Sequence[Path], valid: Sequence[Path] | None, rate: int
) -> tuple[RecordedPairs, RecordedPairs]:
    """Pairs for training and for validation."""
    found = _pairs_in(folders)
    if valid is not None:
        held_out = _pairs_in(valid)
    else:
        common = Path(os.path.commonpath([pair.clean.parent for pair in found]))
        apart = split_speakers([pair.clean for pair in found], common, HELD_OUT)
        found, held_out = ([pair for pair in found if pair.clean in {*files}] for files in apart)
    training, validation = (
        RecordedPairs([pair.clean for pair in pairs], [pair.noisy for pair in pairs], rate)
        for pairs in (found, held_out)
    )
    return training, validation


def _pairs_in(folders: Sequence[Path]) -> list[Pair]:
    """Of CLEAN and NOISY, or of a folder that has both."""
    return pairs_in_mixtures(folders[0]) if len(folders) == 1 else pairs_in_folders(folders[1], folders[0])
