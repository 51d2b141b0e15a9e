"""The progress bar of commands that go through recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s, {remaining} left{postfix}"


@contextmanager
def progress_bar(name: str, seconds: float, shown: bool) -> Iterator[Callable[[float, float], None]]:
    """A function that is told the seconds that came out and the real-time factor."""
    from tqdm import tqdm

    bar: Any
    with tqdm(
        total=round(seconds, 1),
        desc=name,
        disable=not shown,
        leave=False,
        mininterval=0,  # a block takes seconds
        bar_format=BAR_FORMAT,
    ) as bar:

        def advance(done: float, factor: float) -> None:
            if done:
                bar.set_postfix_str(f"RTF {factor:.2f}", refresh=False)
                bar.update(done)

        yield advance
