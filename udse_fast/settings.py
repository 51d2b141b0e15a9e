"""`InferenceSettings`: how the posterior is sampled, read out and cut into blocks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from udse_fast.checks import Range, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.sampling.read_out import READOUTS
from udse_fast.sampling.samplers import CORRECTOR_SNR
from udse_fast.sampling.sde import Time, time_grid


def _within(bounds: Range, default: Any) -> Any:
    """A number of the settings: its range is checked when they are made."""
    return field(default=default, metadata={"bounds": bounds})


@dataclass(frozen=True)
class InferenceSettings:
    """How the posterior is sampled and read out. The defaults are published; a checkpoint may bring its own."""

    steps: int = _within(Range(1, 100_000), 30)
    samples: int = _within(Range(1, 10_000), 4)
    start_time: float = _within(Range(0, 1, excluded=True), 1.0)
    end_time: float = _within(Range(0, 1, excluded=True), 0.03)
    corrector_snr: float = _within(CORRECTOR_SNR, 0.5)
    rank: int = _within(Range(1, 1000), 4)
    nmf_iterations: int = _within(Range(1, 1000), 1)
    """Multiplicative updates of the noise model per M-step."""
    em_rounds: int = _within(Range(1, 1000), 5)
    start_share: float = _within(Range(0, 1e6, excluded=True), 1.0)
    """Power of the noise model's start relative to the mixture's."""
    readout: str = "auto"
    wiener_exponent: float = _within(Range(0, 2, excluded=True), 1.0)
    blend_ratio: float = _within(Range(0, 1e6, excluded=True), 1.0)
    """Of the read-out "blend": speech-to-noise ratio of a band (compressed domain) where filter and samples weigh
    the same."""
    block_seconds: float = _within(Range(0.5, 3600), 8.0)
    overlap_seconds: float = _within(Range(0, 1800, excluded=True), 0.5)
    batch_blocks: int = _within(Range(1, 1000), 1)
    """Overlapping blocks that are run as one batch; more of them fill a GPU, and take more memory."""
    block_frames: int | None = _within(Range(1, 8), None)
    """Of a causal stream: frames that are enhanced at once, hence the latency; None: the network's own. The built-in
    prior was trained with 2 to 5."""
    forgetting_seconds: float = _within(Range(0, 86_400, excluded=True), 6.0)
    """Of a causal stream: time after which what was learnt about the noise weighs 1/e, in the geometric mean of the
    columns of W."""
    forgetting_spread: float = _within(Range(1, 1e6), 1.0)
    """The longest of these times over the shortest: columns for noise that changes, and for noise that stays."""
    level_seconds: float = _within(Range(0, 3600, excluded=True), 5.0)
    """Of a causal stream: time for which the loudest frame sets the level that the prior is shown."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            bounds, value = setting.metadata.get("bounds"), getattr(self, setting.name)
            if bounds is None or (value is None and setting.default is None):
                continue
            checked = (real_number if setting.type == "float" else whole_number)(setting.name, value, bounds)
            object.__setattr__(self, setting.name, checked)  # numpy numbers become Python's
        if self.readout not in READOUTS:
            raise UdseError(f"readout: expected one of {', '.join(READOUTS)}, got {self.readout!r}")
        if not self.end_time < self.start_time:
            raise UdseError(f"expected end_time < start_time, got {self.end_time!r} and {self.start_time!r}")
        if not self.overlap_seconds <= self.block_seconds / 2:
            raise UdseError(
                f"overlap_seconds: expected up to half of block_seconds ({self.block_seconds!r}), "
                f"got {self.overlap_seconds!r}"
            )

    def time_grid(self) -> tuple[list[Time], float]:
        """Times and step size; linspace(1, 0.03, N) and 1/N as published, in proportion for other starts."""
        times: list[Time] = [*time_grid(self.steps, self.start_time, self.end_time)]
        return times, self.start_time / self.steps
