"""How recordings are stored: containers by extension, and what a container can hold of what came."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from udse_fast.errors import UdseError

CONTAINERS = {
    **{f".{name.lower()}": name for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "RF64", "W64")},
    **{".aif": "AIFF", ".aifc": "AIFF", ".oga": "OGG", ".opus": "OGG"},
    **{".snd": "AU", ".sph": "NIST", ".nist": "NIST"},
}
"""Extension -> libsndfile's name of the container."""

MULTIMEDIA = {
    **{".m4a": "ipod", ".m4b": "ipod", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".3gp": "3gp"},
    **{".mka": "matroska", ".mkv": "matroska", ".webm": "webm"},
}
"""Extension -> FFmpeg's name of the container, written through PyAV."""

READ_ONLY = frozenset(
    f".{name}"
    for name in ("aac", "ac3", "amr", "ape", "asf", "avi", "dsf", "eac3", "flv", "mp2", "mpc", "mpeg", "mpg", "mts",
                 "oma", "ra", "rm", "spx", "tta", "ts", "voc", "wma", "wmv", "wv")
)  # fmt: skip
"""Extensions that are read and not written: their encoders are not there, or do not keep the length."""

SUFFIXES = frozenset(CONTAINERS) | frozenset(MULTIMEDIA) | READ_ONLY
"""By these a recording in a folder is known."""

_USUAL = {
    **{"WAV": ".wav", "WAVEX": ".wav", "RF64": ".wav", "W64": ".w64", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3"},
    **{"AIFF": ".aiff", "AU": ".au", "CAF": ".caf", "NIST": ".sph"},
    **{"ipod": ".m4a", "mp4": ".mp4", "mov": ".mov", "3gp": ".3gp", "matroska": ".mka", "webm": ".webm"},
}
_WAV_LIMIT = 0xFFFFFFFF - 1024  # bytes that the header of a WAV file can count
_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_FINE = ("FLOAT", "DOUBLE", "PCM_32", "PCM_24", "ALAC_20", "ALAC_24", "ALAC_32")
_LOSSY_ANYWHERE = ("ULAW", "ALAW")  # sample by sample: lengths stay
_LOSSLESS = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_16", "ALAC_20", "ALAC_24",
             "ALAC_32")  # fmt: skip
_OF_MULTIMEDIA = {
    "ipod": ("AAC", "ALAC_16", "ALAC_24"),
    "mp4": ("AAC", "ALAC_16", "ALAC_24", "MPEG_LAYER_III", "OPUS"),
    "mov": ("AAC", "ALAC_16", "ALAC_24", "PCM_16"),
    "3gp": ("AAC",),
    "matroska": ("OPUS", "AAC", "MPEG_LAYER_III", "PCM_16", "FLOAT", "ALAC_16", "ALAC_24"),
    "webm": ("OPUS",),
}
"""What is written into them, the usual one first."""


@dataclass(frozen=True)
class Layout:
    """How a recording is stored.

    `frames` are those that the header says (a truncated file has less), or those that were counted where it does not.
    """

    sample_rate: int
    channels: int
    frames: int
    container: str
    subtype: str
    metadata: dict[str, str]
    bit_rate: int | None = None
    """Of a lossy codec, in bit/s."""
    chapters: list[dict[str, Any]] = field(default_factory=list)
    """As PyAV gives them."""

    @property
    def dtype(self) -> str:
        """What to read: 16-bit integers as they are, all others as float32, full scale 1."""
        return "int16" if self.subtype in ("PCM_16", "ALAC_16") else "float32"

    @property
    def suffix(self) -> str:
        """The usual extension of such a file, .wav for what cannot be written."""
        if self.subtype == "OPUS" and self.container == "OGG":
            return ".opus"
        return _USUAL.get(self.container, ".wav")


def container_of(path: Path) -> str:
    """libsndfile's or FFmpeg's name of the container that goes with the extension.

    Raises:
        UdseError: there is none.
    """
    container = {**CONTAINERS, **MULTIMEDIA}.get(path.suffix.lower())
    if container is None:
        known = ", ".join([*CONTAINERS, *MULTIMEDIA])
        raise UdseError(f"{path}: expected an existing folder, or an output name that ends in {known}")
    return container


def is_writable(path: Path) -> bool:
    """Whether files with the extension of `path` can be written."""
    return path.suffix.lower() in CONTAINERS or path.suffix.lower() in MULTIMEDIA


def output_layout(path: Path, source: Layout) -> tuple[str, str, str | None]:
    """(container, subtype, what could not be kept) of an output file.

    The container of the source where the extension allows it, else that of the extension; the subtype of the
    source where the container holds it, else the best lossless one of the container: 24 bits for finer sources, else
    16; where a container holds lossy ones only, the usual one.
    """
    container = container_of(path)
    if container == "WAV" and source.container in ("WAVEX", "RF64"):
        container = source.container  # all three are called .wav
    lost = None
    if path.suffix.lower() == ".opus":
        subtype = "OPUS"
    elif container in _OF_MULTIMEDIA:
        held = _OF_MULTIMEDIA[container]
        subtype = source.subtype if source.subtype in held else held[0]
    elif _holds(container, source.subtype):
        subtype = source.subtype
    else:
        subtype = _best(container, source.subtype)
    if subtype != source.subtype and path.suffix.lower() != ".opus":
        lost = f"{_told(container)} does not hold {source.subtype}, {subtype} instead"
        if source.subtype.endswith("ADPCM") or source.subtype in ("GSM610", "G721_32", "G723_24", "G723_40"):
            lost = f"{source.subtype} would lengthen it to whole blocks, {subtype} instead"
    if container in ("WAV", "WAVEX") and source.frames * source.channels * _BYTES.get(subtype, 2) > _WAV_LIMIT:
        container, lost = "RF64", "longer than WAV can say, RF64 instead"
    return container, subtype, lost


def _told(container: str) -> str:
    return {"ipod": "M4A", "matroska": "Matroska"}.get(container, container.upper())


def _holds(container: str, subtype: str) -> bool:
    """Codecs of blocks (ADPCM, GSM, MP3 in a WAV) are left out: they change the length."""
    if subtype in _LOSSLESS or subtype in _LOSSY_ANYWHERE:
        return subtype in soundfile.available_subtypes(container)
    return (container, subtype) in (("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"))


def _best(container: str, subtype: str) -> str:
    wanted = ("PCM_24", "PCM_16") if subtype in _FINE else ("PCM_16",)
    held = soundfile.available_subtypes(container)
    return next((candidate for candidate in wanted if candidate in held), soundfile.default_subtype(container))
