"""Damaged recordings of every container: read or refused in one line; no other error, crash, hang or file left.

A few hundred run as a test. Many: `python python_tests/test_fuzz_files.py --count 100000 --seed 1`.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from udse_fast import UdseError
from udse_fast.audio.files import open_recording, written_audio
from udse_fast.audio.pcm import header_of, read_wave_header

HANG_SECONDS = 10.0
MOST_SAMPLES = 5_000_000
RATE = 16000


def originals() -> dict[str, bytes]:
    """A third of a second in every container and codec."""
    x = (0.1 * np.random.default_rng(0).standard_normal(RATE // 3)).astype(np.float32)
    kinds = [("WAV", s) for s in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")]
    kinds += [("RF64", "PCM_16"), ("WAVEX", "PCM_24"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS")]
    kinds += [("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "FLOAT"), ("CAF", "ALAC_16")]
    kinds += [("W64", "PCM_16"), ("NIST", "PCM_16")]
    files = {}
    for container, subtype in kinds:
        buffer = io.BytesIO()
        soundfile.write(buffer, x, RATE, subtype, format=container)
        files[f"{container} {subtype}"] = buffer.getvalue()
    others = (
        "ipod aac,ipod alac,mp4 aac,matroska aac,webm libopus,asf wmav2,adts aac,avi pcm_s16le,mp3 libmp3lame,"
        "wv wavpack,tta tta,ac3 ac3,mpegts aac,flv aac"
    )
    for container, codec in (other.split() for other in others.split(",")):
        rate = {"libopus": 48000, "ac3": 48000}.get(codec, 44100 if container == "flv" else RATE)
        files[f"{container} {codec}"] = encoded(container, codec, x, rate)
    return files


def encoded(container: str, codec: str, x: Any, rate: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 48_000
        frame = av.AudioFrame.from_ndarray(x[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def mutated(files: dict[str, bytes], seed: int) -> tuple[str, bytes]:
    """What it was made of, and the damaged file."""
    rng = np.random.default_rng(seed)
    name = list(files)[seed % len(files)]
    data = bytearray(files[name])
    for _ in range(int(rng.integers(1, 6))):
        head = rng.random() < 0.6  # where the structure is
        place = int(rng.integers(0, min(len(data), 300) if head else len(data)))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 8)):
            case 0:
                data[place] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[place : place + length] = rng.bytes(length)
            case 2:
                data[place : place + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"][
                    int(rng.integers(0, 4))]  # fmt: skip
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = rng.bytes(length)
            case 5:
                del data[max(1, place) :]
            case 6:
                data[place : place + length] = bytes(length)
            case _:
                other = files[list(files)[int(rng.integers(0, len(files)))]]
                start = int(rng.integers(0, len(other)))
                data[place:place] = other[start : start + 8 * length]
        if len(data) < 2:
            break
    return name, bytes(data)


def tried(data: bytes, folder: Path) -> str:
    """ "read" or "refused"; any other error comes out."""
    source, target = folder / "in", folder / ("out.wav", "out.mka")[len(data) % 2]
    source.write_bytes(data)
    stream = io.BytesIO(data)
    header_of(data[:1500])
    with suppress(UdseError):
        read_wave_header(stream.read)
    told = ""
    try:
        with (
            open_recording(source) as recording,
            written_audio(target, recording.layout, lambda _: None, recording.source) as write,
        ):
            samples = 0
            for chunk in recording.chunks():
                assert np.isfinite(chunk).all()
                assert len(chunk) == recording.layout.channels
                write(chunk)
                samples += chunk.size
                if samples > MOST_SAMPLES:
                    break
    except UdseError as error:
        told = str(error)
    else:
        target.unlink()
    assert "\n" not in told
    left = [path.name for path in folder.iterdir() if path != source]
    assert not left, left
    return "refused" if told else "read"


def serve(connection: Connection) -> None:
    """Main function of the process that tries; what decoders print is no matter here."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    files = originals()
    with tempfile.TemporaryDirectory() as folder:
        while True:
            if (seed := connection.recv()) is None:
                return
            name, data = mutated(files, seed)
            try:
                connection.send((tried(data, Path(folder)), name))
            except BaseException as error:
                connection.send((f"{type(error).__name__}: {error}", name))
                for path in Path(folder).iterdir():
                    path.unlink()


def failures(seeds: Iterator[int], counts: Counter[str], serve: Callable[[Connection], None]) -> Iterator[str]:
    """Try mutations one after the other in a process of their own; yields what should not have been."""
    context = multiprocessing.get_context("fork")
    process = None
    for seed in seeds:
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            slow_start = 600.0
        ours.send(seed)
        counts["tried"] += 1
        try:
            result, name = ours.recv() if ours.poll(HANG_SECONDS + slow_start) else ("hang", "")
        except (EOFError, ConnectionResetError):
            process.join()
            result, name = f"crash with status {process.exitcode}", ""
        slow_start = 0.0
        if result in ("read", "refused"):
            counts[result] += 1
            continue
        if not name:
            process.kill()
            process = None
        yield f"seed {seed} {name}: {result}"
    if process is not None:
        ours.send(None)
        process.join()


def test_damaged_files(tmp_path: Path) -> None:
    """By the command line: a process without threads, as a fork of one that has them may wait for them for good."""
    command = [sys.executable, __file__, "--count", "330"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.fullmatch(r"330 tried, (\d+) read, (\d+) refused, 0 wrong\n", done.stdout)
    assert said, done.stdout
    assert min(int(count) for count in said.groups()) > 20


def test_a_track_that_begins_in_the_middle_is_one_line(tmp_path: Path) -> None:
    """In transport streams FFmpeg finds tracks as it goes on."""
    command = [sys.executable, __file__, "--count", "1", "--seed", "34318"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=100)
    assert done.stdout == "1 tried, 0 read, 1 refused, 0 wrong\n", done.stdout + done.stderr


def main(serve: Callable[[Connection], None], description: str | None) -> int:
    """Try as many as the command line asks for in processes that `serve`; 1 where something should not have been."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--minutes", type=float, default=1e9, help="at most")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes

    def seeds() -> Iterator[int]:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            if time.monotonic() > end:
                return
            yield seed

    counts: Counter[str] = Counter()
    failed = 0
    for failure in failures(seeds(), counts, serve):
        print(failure, flush=True)
        failed += 1
    print(f"{counts['tried']} tried, {counts['read']} read, {counts['refused']} refused, {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(serve, __doc__))
