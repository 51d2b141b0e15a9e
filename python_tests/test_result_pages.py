"""Pages of results: what they say of scores whose means are known."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from udse_fast.evaluation.pairs import Pair

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PAGE = BENCHMARKS / "reuse_estimate_page.py"


def benchmark(name: str) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_that_was_cut_enhances_what_is_missing_and_the_page_is_of_both(tmp_path: Path, monkeypatch: Any) -> None:
    script = benchmark("audio_visual")
    pairs = [Pair(Path(), Path(), utterance=f"u{number}", set="matched", snr="-5") for number in range(3)]
    known = {"noisy": (-5.0, 0.3), "no video": (1.0, 0.4), "wrong video": (0.0, 0.3), "true video": (2.0, 0.5)}
    asked = []

    def scores(pair: Pair, other: Pair, seeing: Any) -> dict[str, tuple[float, float]]:
        asked.append((pair.utterance, other.utterance))
        return {name: (values[0] + (name == "true video") * int(pair.utterance[1]), values[1])
                for name, values in known.items()}  # fmt: skip

    monkeypatch.setattr(script, "scores", scores)
    script.scored(tmp_path / "rows.csv", pairs[:2], None)
    values = script.scored(tmp_path / "rows.csv", pairs, None)
    assert asked == [("u0", "u1"), ("u1", "u0"), ("u2", "u0")]
    np.testing.assert_array_equal(values["true video"], [[2, 0.5], [3, 0.5], [4, 0.5]])
    settings = SimpleNamespace(steps=14, samples=1)
    seeing = SimpleNamespace(sampler="ddrm", settings=settings, network=SimpleNamespace(config={"training": {}}))
    told = script.page(values, "-5", seeing)
    assert "3 mixtures at -5 dB, ddrm with 14 steps and 1 sample, " in told
    assert "| true video | 3.00 ± 0.58 | 0.500 ± 0.000 |" in told  # 1 / sqrt(3)
    assert "| wrong video | +3.00 ± 1.13 | +0.200 ± 0.000 | 3 of 3 |" in told  # 1.96 / sqrt(3)


def test_the_second_network_call_is_worth_what_the_files_lose_without_it(tmp_path: Path) -> None:
    """Files that were scored one way alone may not count: the run may have been cut."""
    with open(tmp_path / "scores.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["system", "set", "snr", "utterance", "si_sdr"])
        for number in range(4):
            table.writerow(["noisy", "matched", "0", f"u{number}", 1.0 * number])
            table.writerow(["diffuseen", "matched", "0", f"u{number}", 1.0 * number + 5 + (number == 3) * 100])
            if number < 3:
                table.writerow(["diffuseen, reused", "matched", "0", f"u{number}", 1.0 * number + 3 + 0.1 * number])
        table.writerow(["udiffse", "matched", "0", "u0", 9.0])
    result = subprocess.run(
        [sys.executable, str(PAGE), str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| `")]
    assert [row[1:4] for row in rows] == [
        ["3", "both calls", "+5.00 ± 0.00"],
        ["3", "one call", "+3.10 ± 0.25"],  # t of 2 degrees of freedom, 4.303, times 0.1 / sqrt(3)
        ["3", "lost", "+1.90 ± 0.25"],
    ]
