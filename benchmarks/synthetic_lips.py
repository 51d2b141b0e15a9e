#!/usr/bin/env python3
"""Clips of drawn mouths that say what recordings of speech say: OUT/SPEAKER/NAME.mkv, 88 x 88 pixels with sound.

usage: synthetic_lips.py SPEECH OUT [--list FILE] [--every N]
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import soxr

from udse_fast.audio.files import read_audio
from udse_fast.evaluation.synthetic_lips import draw_mouths, write_clip
from udse_fast.training.corpus import recordings_in, speaker_of

RATE = 16000


def main() -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, metavar="SPEECH")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--list", type=Path, metavar="FILE", help="text file: the recordings to use, one a line")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th recording")
    arguments = parser.parse_args()
    for path in recordings_in(arguments.speech, arguments.list)[:: arguments.every]:
        audio, rate = read_audio(path)
        speech = audio.mean(1)
        if rate != RATE:
            speech = soxr.resample(speech, rate, RATE)
        out = arguments.out / speaker_of(path, arguments.speech) / f"{path.stem}.mkv"
        out.parent.mkdir(parents=True, exist_ok=True)
        write_clip(out, draw_mouths(speech, RATE, zlib.crc32(path.stem.encode())), speech, RATE)


if __name__ == "__main__":
    main()
