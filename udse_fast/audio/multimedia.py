"""Containers and codecs that libsndfile does not know, read and written through PyAV, without a word from FFmpeg."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from udse_fast.audio.layout import Layout

READABLE = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,iff,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,oma,rm,tak,tta,voc,w64,wav,wv,xwma"
)
"""Demuxers that may be tried. None of them opens other files, as playlists do."""
OPTIONS = {"format_whitelist": READABLE, "protocol_whitelist": "none"}

_SUBTYPES = {
    **{"aac": "AAC", "mp3": "MPEG_LAYER_III", "mp3float": "MPEG_LAYER_III", "opus": "OPUS", "vorbis": "VORBIS"},
    **{"libopus": "OPUS", "alac": "ALAC", "pcm_u8": "PCM_U8", "pcm_mulaw": "ULAW", "pcm_alaw": "ALAW"},
    **{"pcm_s16le": "PCM_16", "pcm_s16be": "PCM_16", "pcm_s24le": "PCM_24", "pcm_s24be": "PCM_24"},
    **{"pcm_s32le": "PCM_32", "pcm_s32be": "PCM_32", "pcm_f32le": "FLOAT", "pcm_f32be": "FLOAT"},
    **{"pcm_f64le": "DOUBLE", "pcm_f64be": "DOUBLE", "flac": "PCM", "tta": "PCM", "wavpack": "PCM", "ape": "PCM"},
}
"""FFmpeg's name of a codec -> libsndfile's; the sample format says how many bits those without a number have."""
_ENCODERS = {
    **{"AAC": ("aac", "fltp"), "OPUS": ("libopus", "flt"), "MPEG_LAYER_III": ("libmp3lame", "fltp")},
    **{"ALAC_16": ("alac", "s16p"), "ALAC_24": ("alac", "s32p")},
    **{"PCM_16": ("pcm_s16le", "s16"), "FLOAT": ("pcm_f32le", "flt")},
}
"""Subtype -> encoder and its sample format."""
_LOSSY = ("AAC", "OPUS", "MPEG_LAYER_III")
_USUAL_BIT_RATE = 64_000  # a channel
_FORMATS = {"MP3": "mp3", "OGG": "ogg"}
_NOT_TAGS = {"encoder", "major_brand", "minor_version", "compatible_brands", "language", "handler_name", "vendor_id",
             "duration"}  # fmt: skip


class Nameless:
    """An open file without its name, which FFmpeg would take for a hint of what is in it.

    It keeps a place of its own: several may read the same open file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor, self._place = file.fileno(), 0

    def read(self, size: int) -> bytes:
        content = os.pread(self._descriptor, size, self._place)
        self._place += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        return self._place


class MultimediaReader:
    """The first audio track of an open file. `layout` says what it is; `read` goes on to its end."""

    def __init__(self, file: IO[bytes]) -> None:
        """Raises FFmpeg's errors (`av.FFmpegError`) or ValueError where nothing in it is audio."""
        import av

        self._container = av.open(Nameless(file), options=OPTIONS)
        if not self._container.streams.audio:
            self.close()
            raise ValueError("no audio track in it")
        self._stream = self._container.streams.audio[0]
        self._resampler: Any = None
        self._decoded = self._decoding()
        self._left: int | None = None
        try:
            self._first: NDArray[Any] | None = next(self._decoded, None)
        except BaseException:
            self.close()
            raise
        if self._first is None:
            self.close()
            raise ValueError("no audio in its track")
        context = self._stream.codec_context
        duration, unit = self._stream.duration, self._stream.time_base
        if self._container.format.name.startswith("mov") and self._stream.frames and duration and unit:
            self._left = round(duration * unit * self._rate)  # the last frame of the codec reaches beyond the end
        self.frames = self._left
        self.layout = Layout(
            self._rate,
            self._first.shape[1],
            self._left or 0,
            self._container_name(),
            self._subtype(context.name),
            _tags({**self._container.metadata, **self._stream.metadata}),
            self._stream.bit_rate or self._container.bit_rate or None,
            [dict(chapter) for chapter in self._container.chapters()],
        )

    def _container_name(self) -> str:
        names = self._container.format.name.split(",")
        if self._container.streams.video:
            return {"mov": "mp4", "matroska": "matroska"}.get(names[0], names[0])
        return {"mov": "ipod", "mp3": "MP3", "ogg": "OGG", "wav": "WAV", "flac": "FLAC"}.get(names[0], names[0])

    def _subtype(self, codec: str) -> str:
        subtype = _SUBTYPES.get(codec, codec.upper())
        if subtype not in ("PCM", "ALAC"):
            return subtype
        sixteen = self._stream.codec_context.format.name in ("s16", "s16p")
        return f"{subtype}_{16 if sixteen else 24}"

    def _decoding(self) -> Iterator[NDArray[Any]]:
        """(n, channels) int16 or float32 of every frame; what is damaged at the very end is cut off there."""
        import av

        broken: Exception | None = None
        for packet in self._packets():
            if broken is not None and packet.size:
                raise broken
            try:
                for frame in packet.decode():
                    yield from self._samples(frame)
            except av.error.InvalidDataError as error:
                broken = error

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._stream)
        except IndexError as error:  # of PyAV, which looks for the track among those that were there at the beginning
            raise ValueError("a track begins in the middle of it") from error

    def _samples(self, frame: Any) -> Iterator[NDArray[Any]]:
        import av

        if self._resampler is None:
            self._rate, channels = frame.sample_rate, len(frame.layout.channels)
            if not (self._rate and channels):
                raise ValueError("no sample rate in it")
            packed = "s16" if frame.format.name in ("s16", "s16p") else "flt"
            self._resampler = av.AudioResampler(format=packed, layout=frame.layout, rate=self._rate)
            self._channels = channels
        for converted in self._resampler.resample(frame):
            yield converted.to_ndarray().reshape(-1, self._channels)

    def read(self, frames: int) -> NDArray[Any]:
        """About so many, (n, channels) int16 or float32; none at the end."""
        parts: list[NDArray[Any]] = []
        while sum(map(len, parts)) < frames:
            part = self._first if self._first is not None else next(self._decoded, None)
            self._first = None
            if part is None:
                break
            if self._left is not None:
                part = part[: self._left]
                self._left -= len(part)
                if not len(part):
                    break
            parts.append(part)
        if not parts:
            return np.zeros((0, self.layout.channels), self.layout.dtype)
        return np.concatenate(parts)

    def close(self) -> None:
        self._container.close()


def lossy_facts(file: IO[bytes]) -> tuple[int | None, dict[str, str], list[dict[str, Any]]]:
    """(bit rate, tags, chapters) of a file whose samples libsndfile reads; nothing where FFmpeg does not know it."""
    import av

    try:
        with av.open(Nameless(file), options=OPTIONS) as container:
            stream = container.streams.audio[0]
            tags = _tags({**container.metadata, **stream.metadata})
            return stream.bit_rate or container.bit_rate or None, tags, [dict(c) for c in container.chapters()]
    except (av.FFmpegError, ValueError, IndexError):
        return None, {}, []


def _tags(metadata: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in metadata.items() if name.lower() not in _NOT_TAGS}


def _vorbis_chapters(chapters: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Chapters as Vorbis comments: CHAPTER000=00:00:00.500, CHAPTER000NAME=its title."""
    tags = {}
    for number, chapter in enumerate(chapters):
        minutes, milliseconds = divmod(round(chapter["start"] * chapter["time_base"] * 1000), 60_000)
        clock = f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"
        tags[f"CHAPTER{number:03}"] = clock
        tags[f"CHAPTER{number:03}NAME"] = chapter["metadata"].get("title", "")
    return tags


def has_other_tracks(file: IO[bytes]) -> bool:
    """Whether there are pictures or subtitles beside the sound."""
    import av

    try:
        with av.open(Nameless(file), options=OPTIONS) as container:
            return any(stream.type in ("video", "subtitle") for stream in container.streams)
    except (av.FFmpegError, ValueError):
        return False


class _OtherTracks:
    """Pictures and subtitles of a file, copied packet by packet into another."""

    def __init__(self, file: IO[bytes], target: Any) -> None:
        import av

        self._container = av.open(Nameless(file), options=OPTIONS)
        self._target = target
        self._streams = [s for s in self._container.streams if s.type in ("video", "subtitle")]
        self._copies = {s.index: target.add_stream_from_template(s) for s in self._streams}
        for stream in self._streams:
            self._copies[stream.index].disposition = stream.disposition
        self._packets = self._container.demux(self._streams)
        self._held: Any = None
        sound = self._container.streams.audio[0]
        self.sound_starts = max(0.0, float((sound.start_time or 0) * sound.time_base)) if sound.time_base else 0.0
        """In seconds: later than the picture, where somebody began to speak late."""

    def copy_until(self, seconds: float) -> None:
        """All packets that are due before this time."""
        while True:
            packet = self._held if self._held is not None else next(self._packets, None)
            self._held = None
            if packet is None:
                return
            if packet.dts is None:  # the end of a track
                continue
            if float(packet.dts * packet.time_base) > seconds:
                self._held = packet
                return
            packet.stream = self._copies[packet.stream.index]
            self._target.mux(packet)

    def close(self) -> None:
        self._container.close()


class MultimediaWriter:
    """One audio track in a new file; the length, tags, chapters and the bit rate of a lossy source are kept."""

    def __init__(
        self, file: IO[bytes], container: str, subtype: str, source: Layout, beside: IO[bytes] | None = None
    ) -> None:
        """Raises FFmpeg's errors (`av.FFmpegError`) or ValueError where the codec does not take rate or channels.

        `beside`: the source, whose pictures and subtitles are copied as they are.
        """
        import av

        encoder, self._format = _ENCODERS[subtype]
        options = {"movie_timescale": str(source.sample_rate)} if container in ("ipod", "mp4", "mov", "3gp") else {}
        self._container = av.open(file, "w", format=_FORMATS.get(container, container), options=options)
        layout = {1: "mono", 2: "stereo"}.get(source.channels, f"{source.channels}c")
        self._layout = av.AudioLayout(layout)
        self._stream = self._container.add_stream(encoder, rate=source.sample_rate, layout=self._layout)
        self._stream.codec_context.format = self._format
        if subtype in _LOSSY:
            own = source.subtype in _LOSSY or source.subtype == "VORBIS"
            given = source.bit_rate if own else None
            self._stream.bit_rate = given or _USUAL_BIT_RATE * source.channels
        self._container.metadata.update(source.metadata)
        if container == "OGG":  # FFmpeg rounds their seconds up
            self._container.metadata.update(_vorbis_chapters(source.chapters))
        elif source.chapters:
            self._container.set_chapters(source.chapters)
        self._stream.codec_context.open()
        self._others = None if beside is None else _OtherTracks(beside, self._container)
        self._rate = source.sample_rate
        self._frames = 0 if self._others is None else round(self._others.sound_starts * self._rate)
        self._container.start_encoding()

    def write(self, samples: NDArray[Any]) -> None:
        """Append (n, channels) int16 or float32."""
        import av

        if not len(samples):
            return  # FFmpeg knows no empty frame

        packed = "s16" if samples.dtype == np.int16 else "flt"
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format=packed, layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._frames, Fraction(1, self._rate)
        self._frames += len(samples)
        if self._others is not None:
            self._others.copy_until(self._frames / self._rate)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        """Write the rest, and the index."""
        if self._others is not None:
            self._others.copy_until(math.inf)
            self._others.close()
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
