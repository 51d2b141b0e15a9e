"""The picture of a training run: loss, and denoising error by noise level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from udse_fast.atomic import atomic_write


def draw_curves(history: list[dict[str, Any]], path: Path) -> str:
    """Draw the run so far into a PNG; return its name, or the reason why there is none."""
    if not history:
        return "no curves yet (nothing validated)"
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no curves (pip install udse-fast[plot])"
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [entry["step"] for entry in history]
    left.plot(steps, [entry["loss"] for entry in history], marker=".")
    left.set(xlabel="step", ylabel="training loss")
    for time in history[-1]["validation"]:
        right.plot(steps, [entry["validation"].get(time) for entry in history], marker=".", label=f"t = {time}")
    right.set(xlabel="step", ylabel="relative denoising error, held-out speakers", yscale="log")
    right.legend(fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path.name
