"""Settings: how the posterior is sampled, read out, and how a signal is cut into blocks. Checked once, when made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from udse_fast.checks import Range, flag, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.sampling.read_out import READOUTS
from udse_fast.sampling.samplers import CORRECTOR_SNR
from udse_fast.sampling.sde import Time, noise_levels, time_grid
from udse_fast.sampling.separation import RULES, SOLVERS

CHOICES: Final = {
    "readout": READOUTS,
    "restraint": ("auto", "off"),
    "hum": ("remove", "keep"),
    "stereo": ("separate", "common"),
    "high_band": ("follow", "keep", "cut"),
}
"""Of the settings that are words."""
Check = Callable[[str, Any], Any]
"""(name, value) -> the value as Python's number, or an error."""


def _real(default: float, bounds: Range) -> Any:
    return field(default=default, metadata={"check": lambda name, value: real_number(name, value, bounds)})


def _whole(default: int | None, bounds: Range) -> Any:
    """A whole number; None is allowed where it is the default."""

    def check(name: str, value: Any) -> int | None:
        return None if value is None and default is None else whole_number(name, value, bounds)

    return field(default=default, metadata={"check": check})


def _real_or_none(bounds: Range) -> Any:
    """A number, or None, which is the default."""

    def check(name: str, value: Any) -> float | None:
        return None if value is None else real_number(name, value, bounds)

    return field(default=None, metadata={"check": check})


def _flag(default: bool) -> Any:
    return field(default=default, metadata={"check": flag})


@dataclass(frozen=True)
class Checked:
    """Fields whose kind and range are checked when the object is made."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            check: Check | None = setting.metadata.get("check")
            if check is not None:  # numpy's numbers become Python's
                object.__setattr__(self, setting.name, check(setting.name, getattr(self, setting.name)))


@dataclass(frozen=True)
class SamplingSettings(Checked):
    """How the posterior is sampled. The defaults are the published ones."""

    steps: int = _whole(30, Range(1, 100_000))
    samples: int = _whole(4, Range(1, 10_000))
    shared_steps: int = _whole(0, Range(0, 100_000))
    """Steps at the beginning that the samples have in common, all but the last step at most; then each goes on with
    noise of its own. 0, as published: they are apart from the start."""
    start_time: float = _real(1.0, Range(0, 1, excluded=True))
    end_time: float = _real(0.03, Range(0, 1, excluded=True))
    corrector_snr: float = _real(0.5, CORRECTOR_SNR)
    reuse_estimate: bool = _flag(False)
    """The predictor takes the denoised estimate of the corrector's network call, in place of a call of its own."""
    rank: int = _whole(4, Range(1, 1000))
    nmf_iterations: int = _whole(1, Range(1, 1000))
    """Multiplicative updates of the noise model per M-step."""
    em_rounds: int = _whole(5, Range(1, 1000))
    start_share: float = _real(1.0, Range(0, 1e6, excluded=True))
    """Power of the noise model's start relative to the mixture's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.end_time < self.start_time:
            raise UdseError(f"expected end_time < start_time, got {self.end_time!r} and {self.start_time!r}")

    def time_grid(self) -> tuple[list[Time], float]:
        """Times and step size; linspace(1, 0.03, N) and 1/N as published, in proportion for other starts."""
        times: list[Time] = [*time_grid(self.steps, self.start_time, self.end_time)]
        return times, self.start_time / self.steps


@dataclass(frozen=True)
class ReadOutSettings(Checked):
    """How one estimate is made of the samples, see `udse_fast.sampling.read_out.ReadOut`."""

    readout: str = "auto"
    wiener_exponent: float = _real(1.0, Range(0, 2, excluded=True))
    blend_ratio: float = _real(1.0, Range(0, 1e6, excluded=True))
    """Of the read-out "blend": speech-to-noise ratio of a band (compressed domain) where filter and samples weigh
    the same."""
    restraint: str = "off"
    """"auto": less is taken away where it is speech that would be lost, see `udse_fast.sampling.restraint`."""
    hum: str = "remove"
    """DC and mains hum: "remove" takes them out before the prior sees the signal, and they are no part of the speech;
    "keep" leaves them to the sampler."""
    stereo: str = "separate"
    """Channels of one signal: "separate" enhances each on its own; "common" gives all of them one real gain per bin, so
    that the image stays: what cancels between channels still does."""
    high_band: str = "follow"
    """What becomes of the input above the network's band (8 kHz): "follow": it gets the gain that the highest part of
    the band gets, 5 to 7.5 kHz; "keep": it stays as it is; "cut": it is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UdseError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class OverlapSettings(Checked):
    """How a signal is cut into overlapping blocks. The defaults are for whole signals."""

    block_seconds: float = _real(8.0, Range(0.5, 3600))
    overlap_seconds: float = _real(0.5, Range(0, 1800, excluded=True))
    batch_blocks: int = _whole(1, Range(1, 1000))
    """Blocks that are run as one batch; more of them fill a GPU, and take more memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.overlap_seconds <= self.block_seconds / 2:
            raise UdseError(
                f"overlap_seconds: expected up to half of block_seconds ({self.block_seconds!r}), "
                f"got {self.overlap_seconds!r}"
            )


@dataclass(frozen=True)
class CausalSettings(Checked):
    """How a causal stream is cut into blocks, and what it forgets."""

    block_frames: int | None = _whole(None, Range(1, 8))
    """Frames that are enhanced at once, hence the latency; None: the network's own. The built-in prior was trained
    with 2 to 5."""
    forgetting_seconds: float = _real(6.0, Range(0, 86_400, excluded=True))
    """Time after which what was learnt about the noise weighs 1/e, in the geometric mean of the columns of W."""
    forgetting_spread: float = _real(1.0, Range(1, 1e6))
    """The longest of these times over the shortest: columns for noise that changes, and for noise that stays."""
    noise_floor: float = _real(0.0, Range(0, 100))
    """Least power of the noise in each band, as a factor of the mixture's smallest within 0.9 s; 0: none. It keeps
    steady noise from being taken for speech."""
    level_seconds: float = _real(5.0, Range(0, 3600, excluded=True))
    """Time for which the loudest frame sets the level that the prior is shown."""


@dataclass(frozen=True)
class InferenceSettings(CausalSettings, OverlapSettings, ReadOutSettings, SamplingSettings):
    """All of them. A checkpoint may bring its own."""


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "vocals": {"steps": 90},  # Ex-Diff: voices in music
    "dereverberation": {"steps": 50, "corrector_snr": 0.33},  # SGMSE+
}
"""Settings that were published for other tasks than noise."""

STREAM_BLOCKS: Final = {"block_seconds": 2.0, "overlap_seconds": 0.25}
"""Of overlapping streams, where nothing else is asked for: shorter than for whole signals, as they are the latency."""


def setting_names(*sections: type[Checked]) -> tuple[str, ...]:
    """Names of the settings of all sections, or of some."""
    return tuple(setting.name for section in sections or (InferenceSettings,) for setting in fields(section))


SEPARATION: Final = {
    "shares": {"steps": 6, "highest_level": 0.3, "lowest_level": 0.02, "guidance": 2.0},
    "dps": {"steps": 30, "highest_level": 1.2, "lowest_level": 0.02, "guidance": 0.5},
}
"""Samplers of all sources of a mixture, with what suits them where nothing else is asked for."""


@dataclass(frozen=True)
class SeparationSettings(Checked):
    """How all sources of a mixture are sampled, shared out, and how a recording is cut into blocks."""

    sampler: str = "shares"
    """"shares": the powers that the priors expect, few calls forward; "dps": posterior sampling by coupled ODEs."""
    steps: int | None = _whole(None, Range(2, 100_000))
    """None, here and below: what suits the sampler (`SEPARATION`)."""
    guidance: float | None = _real_or_none(Range(0, 1000))
    """w of classifier-free guidance, of sources that are told something and do not say their own."""
    highest_level: float | None = _real_or_none(Range(0, 1e3, excluded=True))
    """sigma_max: noise level of the start of "dps", of the second step of "shares", relative to the loudest bin of the
    recording (compressed)."""
    lowest_level: float | None = _real_or_none(Range(0, 1e3, excluded=True))
    """sigma_min: noise level of the last step."""
    start_level: float = _real(1.5, Range(0, 1e3, excluded=True))
    """Of the first step of "shares", where nothing but the priors is heard."""
    rho: float = _real(7.0, Range(1, 100))
    """Of the grid in between: higher ones have more steps at low levels."""
    zeta: float = _real(0.5, Range(0, 1e6))
    """Of "dps": weight of the likelihood, of the slope that it adds, per element, relative to the noise."""
    solver: str = "euler"
    rule: str = "joint"
    """Of "dps", see `udse_fast.separate_sources`."""
    sharpness: float = _real(1.0, Range(0, 10, excluded=True))
    """Of "dps": exponent q of the masks |S_k|^q / sum_j |S_j|^q that share the recording out; 2: Wiener's."""
    block_seconds: float = _real(8.0, Range(0.5, 3600))
    overlap_seconds: float = _real(1.0, Range(0, 1800, excluded=True))
    """Of neighbouring blocks, by which it is found out which talker is which."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("sampler", tuple(SEPARATION)), ("solver", SOLVERS), ("rule", RULES)):
            if getattr(self, name) not in choices:
                raise UdseError(f"{name}: expected {' or '.join(choices)}, got {getattr(self, name)!r}")
        for name, value in SEPARATION[self.sampler].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        assert self.lowest_level is not None
        assert self.highest_level is not None
        if not self.lowest_level < self.highest_level:
            raise UdseError(
                f"lowest_level: expected less than highest_level ({self.highest_level!r}), got {self.lowest_level!r}"
            )
        _ = self.blocks

    @property
    def blocks(self) -> OverlapSettings:
        """How a recording is cut."""
        return OverlapSettings(self.block_seconds, self.overlap_seconds)

    @property
    def levels(self) -> list[float]:
        """Noise levels of the steps: of "dps" N + 1, the last of which is 0."""
        assert self.steps is not None
        assert self.highest_level is not None
        assert self.lowest_level is not None
        if self.sampler == "dps":
            return noise_levels(self.steps, self.highest_level, self.lowest_level, self.rho)
        return [self.start_level, *noise_levels(self.steps - 1, self.highest_level, self.lowest_level, self.rho)[:-1]]
