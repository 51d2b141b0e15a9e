"""`InferenceSettings`: how the posterior is sampled, read out and cut into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from udse_fast.errors import UdseError
from udse_fast.output import READOUTS
from udse_fast.sde import Time, time_grid


@dataclass(frozen=True)
class InferenceSettings:
    """How the posterior is sampled and read out. The defaults are published; a checkpoint may bring its own."""

    steps: int = 30
    samples: int = 4
    start_time: float = 1.0
    end_time: float = 0.03
    corrector_snr: float = 0.5
    rank: int = 4
    nmf_iterations: int = 1
    """Multiplicative updates of the noise model per M-step."""
    em_rounds: int = 5
    start_share: float = 1.0
    """Power of the noise model's start relative to the mixture's."""
    readout: str = "auto"
    wiener_exponent: float = 1.0
    blend_ratio: float = 1.0
    """Of the read-out "blend": speech-to-noise ratio of a band (compressed domain) where filter and samples weigh
    the same."""
    block_seconds: float = 8.0
    overlap_seconds: float = 0.5
    batch_blocks: int = 1
    """Overlapping blocks that are run as one batch; more of them fill a GPU, and take more memory."""
    block_frames: int | None = None
    """Of a causal stream: frames that are enhanced at once, hence the latency; None: the network's own."""
    forgetting_seconds: float = 6.0
    """Of a causal stream: time after which what was learnt about the noise weighs 1/e."""
    level_seconds: float = 20.0
    """Of a causal stream: time in which the level that the prior is shown falls to 1/e after the loudest frame."""

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "rank", "em_rounds", "nmf_iterations", "batch_blocks"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UdseError(f"{name}: expected a whole number >= 1, got {value!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value)
            ):
                raise UdseError(f"{field.name}: expected a number, got {value!r}")
        if self.readout not in READOUTS:
            raise UdseError(f"readout: expected one of {', '.join(READOUTS)}, got {self.readout!r}")
        if not 0 < self.wiener_exponent <= 2:
            raise UdseError(f"wiener_exponent: expected a number in (0, 2], got {self.wiener_exponent!r}")
        if not 0 < self.blend_ratio < math.inf:
            raise UdseError(f"blend_ratio: expected a ratio of powers above 0, got {self.blend_ratio!r}")
        if not 0 < self.end_time < self.start_time <= 1:
            raise UdseError(f"expected 0 < end_time < start_time <= 1, got {self.end_time!r} and {self.start_time!r}")
        frames = self.block_frames
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
            raise UdseError(f"block_frames: expected a whole number >= 1 or None, got {frames!r}")
        for name in ("forgetting_seconds", "level_seconds"):
            if not getattr(self, name) > 0:
                raise UdseError(f"{name}: expected a time in seconds above 0, got {getattr(self, name)!r}")
        if not (self.block_seconds >= 0.5 and 0 < self.overlap_seconds <= self.block_seconds / 2):
            raise UdseError(
                f"expected block_seconds >= 0.5 and overlap_seconds up to half of it, "
                f"got {self.block_seconds!r} and {self.overlap_seconds!r}"
            )

    def time_grid(self) -> tuple[list[Time], float]:
        """Times and step size; linspace(1, 0.03, N) and 1/N as published, in proportion for other starts."""
        times: list[Time] = [*time_grid(self.steps, self.start_time, self.end_time)]
        return times, self.start_time / self.steps
