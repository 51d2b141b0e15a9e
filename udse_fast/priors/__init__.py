"""The built-in priors, and the settings for inference that were tuned for networks of their kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BUILT_IN = {
    name: FOLDER / f"{name}.safetensors" for name in ("speech", "causal", "joint", "posterior", "posterior_causal")
}
"""Name that `load_network` and `Enhancer` take for a path -> file."""


def tuned_settings(network: str) -> dict[str, Any]:
    """Settings for `Enhancer`, from `settings.json`, that suit a kind of network, or a built-in prior before others.

    Args:
        network: kind ("compact", "compact-causal", ...), or a name of `BUILT_IN`.

    Returns:
        "sampler": the recommended one; "all": settings for every sampler; then settings by sampler. Empty where
        nothing was tuned. How they were found: `benchmarks/results/settings.md`.
    """
    settings: dict[str, dict[str, Any]] = json.loads((FOLDER / "settings.json").read_text())
    return settings.get(network, {})
