"""Counters, gauges and histograms in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(Protocol):
    """A name, a sentence about it, and lines of samples."""

    name: str
    help: str
    kind: str

    def samples(self) -> list[str]:
        """Lines `name{labels} value`."""


class Counter:
    """A number that grows, for each value of a label or on its own."""

    kind = "counter"

    def __init__(self, name: str, help: str, label: str = "") -> None:
        self.name, self.help, self.label = name, help, label
        self.values: dict[str, float] = {} if label else {"": 0.0}

    def add(self, amount: float = 1.0, label: str = "") -> None:
        """Count `amount` more."""
        self.values[label] = self.values.get(label, 0.0) + amount

    def samples(self) -> list[str]:
        """One line a label."""
        return [
            f'{self.name}{{{self.label}="{value}"}} {number:g}' if self.label else f"{self.name} {number:.6f}"
            for value, number in sorted(self.values.items())
        ]


class Gauge:
    """A number that is read when it is asked for."""

    kind = "gauge"

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.name, self.help, self._read = name, help, read

    def samples(self) -> list[str]:
        """One line."""
        return [f"{self.name} {self._read():g}"]


class Histogram:
    """Counts of values up to each bound, their sum and number."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name, self.help, self.bounds = name, help, sorted(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def samples(self) -> list[str]:
        """Cumulative buckets, sum and count."""
        lines, below = [], 0
        for bound, count in zip([*self.bounds, None], self.counts, strict=True):
            below += count
            lines.append(f'{self.name}_bucket{{le="{"+Inf" if bound is None else format(bound, "g")}"}} {below}')
        return [*lines, f"{self.name}_sum {self.total:.6f}", f"{self.name}_count {below}"]


class Metrics:
    """What the server counts; `text` is the page at /metrics."""

    def __init__(self, streams: Callable[[], float], capacity: Callable[[], float]) -> None:
        self.opened = Counter("udse_streams_opened_total", "Streams that were let in.")
        self.closed = Counter("udse_streams_closed_total", "Streams that ended, by websocket close code.", "code")
        self.refused = Counter("udse_refused_total", "Connections that were not let in.", "reason")
        self.audio = Counter("udse_audio_seconds_total", "Audio enhanced, all channels.")
        self.computing = Counter("udse_computing_seconds_total", "Time in which a batch was computed.")
        self.failed = Counter("udse_failed_total", "Streams that ended by an error of the server.")
        self.batch = Histogram("udse_batch_streams", "Streams computed together.", (1, 2, 4, 8, 16, 32, 64, 128))
        self.response = Histogram(
            "udse_response_seconds",
            "From a message's arrival until its result was sent.",
            (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
        )
        self._all: list[Metric] = [
            Gauge("udse_streams", "Open streams, a channel each.", streams),
            Gauge("udse_streams_limit", "Channels that are served at once.", capacity),
            *vars(self).values(),
        ]

    def text(self) -> str:
        """All of them."""
        lines = []
        for metric in self._all:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.samples()]
        return "\n".join(lines) + "\n"
