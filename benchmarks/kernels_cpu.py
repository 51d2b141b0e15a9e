"""Makes a table of test_kernels_cpu.py for each number of threads given.

python benchmarks/kernels_cpu.py 1 2 > benchmarks/results/kernels_cpu.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import udse_fast
from udse_fast.backends import isa

HEAD = """\
# The C++ core beside plain torch on a CPU

Made with `python benchmarks/kernels_cpu.py {threads}`: udse-fast {version}, instruction set {isa}, torch {torch},
{cpu}. Times are those of the fastest round, the call from Python included, results asserted in the
same run. "Plain torch" is the readable form that the core is tested against, its noise from `torch.randn`. "Moved" are
the bytes that an operation cannot do without, each input read and each output written once (P twice by the NMF), per
second, and as a share of a memory copy."""

TABLE = """
## {threads} thread{s}; the copy: {copy:.1f} GB/s read and written

| operation | core / µs | plain torch / µs | ratio | other / µs | moved / GB/s | share of copy |
| --- | --- | --- | --- | --- | --- | --- |"""


def measure(threads: int) -> dict[str, Any]:
    """The JSON of pytest-benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        tests = Path(__file__).with_name("test_kernels_cpu.py")
        command = [sys.executable, "-m", "pytest", "-q", str(tests), f"--benchmark-json={report}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
        result: dict[str, Any] = json.loads(report.read_text())
        return result


def table(report: dict[str, Any], threads: int) -> str:
    groups: dict[str, dict[str, Any]] = {}
    for row in report["benchmarks"]:
        groups.setdefault(row["group"], {})[row["params"]["variant"]] = row
    rows = []
    for group, variants in groups.items():
        time = {name: row["stats"]["min"] * 1e6 for name, row in variants.items()}
        plain = time.get("torch", time["reference"])
        other = "".join(f"{name} {time[name]:.0f}" for name in ("scikit-learn", "torch.randn") if name in time)
        info = variants["cpp"]["extra_info"]
        rows.append(
            f"| {group} | {time['cpp']:.1f} | {plain:.1f} | {plain / time['cpp']:.1f} | {other} "
            f"| {info['bytes_per_second'] / 1e9:.1f} | {info['share_of_copy']:.2f} |"
        )
    copy = report["benchmarks"][0]["extra_info"]["copy_bytes_per_second"] / 1e9
    return "\n".join([TABLE.format(threads=threads, s="s" if threads > 1 else "", copy=copy), *rows])


def main(thread_counts: list[int]) -> None:
    reports = [measure(threads) for threads in thread_counts]
    print(
        HEAD.format(
            threads=" ".join(map(str, thread_counts)),
            version=udse_fast.__version__,
            isa=isa(),
            torch=torch.__version__,
            cpu=reports[0]["machine_info"]["cpu"]["brand_raw"],
        )
    )
    for report, threads in zip(reports, thread_counts, strict=True):
        print(table(report, threads))


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [torch.get_num_threads()])
