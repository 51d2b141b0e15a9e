"""Plots of scores: violins per SNR, and paired differences with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udse_fast.evaluation.metrics import METRICS, require
from udse_fast.evaluation.tables import LABELS, ScoreRow, interval, snr_groups, unique

PLOT_COLUMNS = 2
PANEL_INCHES = (5.5, 2.8)


def draw_violins(rows: Sequence[ScoreRow], path: Path, title: str) -> None:
    """Draw the distribution of each metric per SNR and system, the median marked, into a PNG at `path`."""

    def draw(axes: Any, metric: str, snr: str, system: str, x: float, width: float, colour: str) -> None:
        values = [r.values.get(metric, math.nan) for r in rows if (r.snr, r.system) == (snr, system)]
        values = [v for v in values if math.isfinite(v)]
        if len(values) < 2:
            axes.plot([x] * len(values), values, ".", color=colour)
            return
        violin = axes.violinplot(values, positions=[x], widths=width, showmedians=True)
        for body in violin["bodies"]:
            body.set_facecolor(colour)
            body.set_alpha(0.6)
        for part in ("cmedians", "cmins", "cmaxes", "cbars"):
            violin[part].set_color(colour)
            violin[part].set_linewidth(1.0)

    _draw(rows, path, title, [snr for snr in snr_groups(rows) if any(r.snr == snr for r in rows)], draw)


def draw_differences(rows: Sequence[ScoreRow], path: Path, title: str) -> None:
    """Draw the mean paired difference to each system per SNR, with its confidence interval, into a PNG at `path`."""

    def draw(axes: Any, metric: str, snr: str, system: str, x: float, width: float, colour: str) -> None:
        group = [r for r in rows if r.system == system and (r.snr == snr or not any(q.snr == snr for q in rows))]
        for row in group:
            axes.plot(x, row.values.get(metric, math.nan), ".", color=colour, alpha=0.25, markersize=3)
        found = interval(group, metric)
        error = found.half_width if math.isfinite(found.half_width) else 0.0
        axes.errorbar(x, found.mean, yerr=error, fmt="o", color=colour, capsize=3, markersize=4)
        axes.axhline(0.0, color="0.4", linewidth=0.8)

    _draw(rows, path, title, snr_groups(rows), draw)


def _draw(rows: Sequence[ScoreRow], path: Path, title: str, snrs: Sequence[str], draw: Any) -> None:
    """Draw one panel per metric, in it a group per SNR, in that a place per system."""
    matplotlib = require("matplotlib")
    require("matplotlib.figure")
    backend = require("matplotlib.backends.backend_agg")
    metrics = [m for m in METRICS if any(math.isfinite(r.values.get(m, math.nan)) for r in rows)]
    systems = unique(r.system for r in rows)
    lines = math.ceil(len(metrics) / PLOT_COLUMNS)
    width = max(PANEL_INCHES[0], 0.22 * len(systems) * len(snrs) + 1.0)
    figure = matplotlib.figure.Figure((PLOT_COLUMNS * width, lines * PANEL_INCHES[1] + 0.8), layout="constrained")
    backend.FigureCanvasAgg(figure)
    panels = figure.subplots(lines, PLOT_COLUMNS, squeeze=False).ravel()
    place = 0.8 / len(systems)
    for axes, metric in zip(panels, metrics, strict=False):
        for s, system in enumerate(systems):
            for n, snr in enumerate(snrs):
                draw(axes, metric, snr, system, n + (s + 0.5) * place - 0.4, 0.9 * place, f"C{s % 10}")
        axes.set_xticks(np.arange(len(snrs)), [snr or "files" for snr in snrs])
        axes.set_xlim(-0.6, len(snrs) - 0.4)
        axes.set_xlabel("SNR / dB" if any(snrs) else "")
        axes.set_ylabel(LABELS[metric])
        axes.grid(axis="y", alpha=0.3)
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    patches = require("matplotlib.patches")
    handles = [patches.Patch(color=f"C{s % 10}", label=system) for s, system in enumerate(systems)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(systems), 6), fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110, format="png")
