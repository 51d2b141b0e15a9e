"""`Source`: one of the sources of a mixture, and the prior that it is drawn from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from udse_fast.checks import Range, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.networks.conditions import NOISE_SOURCE

MOST_TALKERS = 8


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    Args:
        name: of the source in the results. "noise" is noise, every other name a talker.
        checkpoint: of its prior; None: that of the `Separator`.
        guidance: w of classifier-free guidance where the source has a video; None: that of the `Separator`.

    Raises:
        UdseError: no name that a file can have, or another number.
    """

    name: str
    checkpoint: str | os.PathLike[str] | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or "/" in self.name or "\0" in self.name:
            raise UdseError(f"sources: expected names such as 'talker_1', which files can have, got {self.name!r}")
        if self.guidance is not None:
            object.__setattr__(self, "guidance", real_number("guidance", self.guidance, Range(0, 1000)))

    @property
    def is_noise(self) -> bool:
        """Whether it is no talker."""
        return self.name == NOISE_SOURCE


def named_sources(sources: Any) -> tuple[Source, ...]:
    """Sources out of what a user gives, the noise last.

    Args:
        sources: number of talkers (there is noise too), or names and `Source`s.

    Raises:
        UdseError: no talker, a name twice, another kind.
    """
    if isinstance(sources, str) or not isinstance(sources, Sequence):
        count = whole_number("sources", sources, Range(1, MOST_TALKERS))
        return (*(Source(f"talker_{number}") for number in range(1, count + 1)), Source(NOISE_SOURCE))
    made = [source if isinstance(source, Source) else Source(source) for source in sources]
    if twice := [name for name, times in Counter(source.name for source in made).items() if times > 1]:
        raise UdseError(f"sources: expected a name of its own for each, got {', '.join(twice)} twice")
    talkers = [source for source in made if not source.is_noise]
    if not 1 <= len(talkers) <= MOST_TALKERS:
        raise UdseError(f"sources: expected 1 to {MOST_TALKERS} talkers beside the noise, got {len(talkers)}")
    return (*talkers, *(source for source in made if source.is_noise))
