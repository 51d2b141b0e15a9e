"""The pictures of a video file, decoded through PyAV, in time with its sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from udse_fast.audio.multimedia import OPTIONS, Nameless

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".3gp", ".mpg")
"""Of video files in folders."""


LONGEST_STILL = 60.0
"""Seconds for which one picture may be shown: beyond that a damaged file would go on for ever."""


class Pictures:
    """The first video track of an open file."""

    def __init__(self, file: IO[bytes]) -> None:
        """Raises FFmpeg's errors (`av.FFmpegError`), or ValueError where there is no picture in it."""
        import av

        self._container = av.open(Nameless(file), options=OPTIONS)
        if not self._container.streams.video:
            self._container.close()
            raise ValueError("no picture in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        sound = self._container.streams.audio
        self._starts = float((sound[0].start_time or 0) * sound[0].time_base) if sound and sound[0].time_base else 0.0
        context = self._stream.codec_context
        self.width: int = context.width
        self.height: int = context.height

    def at_rate(self, rate: float) -> Iterator[Any]:
        """Frames (`av.VideoFrame`) at a rate: number j is what is shown (j + 1/2) / rate after the sound begins.

        Before the first picture that one is shown; the last one is held until its own end.

        Raises:
            FFmpeg's errors (`av.FFmpegError`), or ValueError where there is a long gap.
        """
        number, shown, last, length = 0, None, 0.0, 1 / rate
        for frame in self._container.decode(self._stream):
            if frame.time is None:
                continue
            time = frame.time - self._starts
            if time - number / rate > LONGEST_STILL:
                raise ValueError(f"no picture for {time - number / rate:.0f} s")
            while (number + 0.5) / rate < time:
                yield frame if shown is None else shown
                number += 1
            shown, length, last = frame, (time - last if last < time else length), time
        while shown is not None and (number + 0.5) / rate < last + length:
            yield shown
            number += 1

    def grey(self, rate: float) -> Iterator[NDArray[np.uint8]]:
        """`at_rate`, as grey pictures (height, width), turned as a player would show them."""
        last, grey = None, None
        for frame in self.at_rate(rate):
            if grey is None or frame is not last:  # a picture that is held is converted once
                last, grey = frame, np.rot90(frame.to_ndarray(format="gray"), round(frame.rotation / 90))
            yield grey

    def begin_again(self) -> None:
        """Go back to the first picture."""
        self._container.seek(0)

    def close(self) -> None:
        """Close the file."""
        self._container.close()
