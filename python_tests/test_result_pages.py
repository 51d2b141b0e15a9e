"""Pages of results: what they say of scores whose means are known."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "benchmarks" / "reuse_estimate_page.py"


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
