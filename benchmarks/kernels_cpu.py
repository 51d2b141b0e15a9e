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
from udse_fast.backends.dispatch import isa

HEAD = """\
# The C++ core beside plain torch on a CPU

Made with `python benchmarks/kernels_cpu.py`: udse-fast {version}, instruction set {isa}, torch {torch}, one thread,
{cpu}. Times are processor time of the fastest round, the call from Python included, results asserted
in the same run. "Plain torch" is the readable form that the core is tested against, its noise from `torch.randn`.
"Moved" are the bytes that an operation cannot do without, each input read and each output written once (P twice by the
NMF), per second, and as a share of a memory copy, which reads and writes {copy:.1f} GB/s. Load of the machine
before the run: {load:.1f} on {cores} cores; where it is not 0, rows of large arrays are slower than they need be.

| operation | core / µs | plain torch / µs | ratio | other / µs | moved / GB/s | share of copy |
| --- | --- | --- | --- | --- | --- | --- |"""


def measure() -> dict[str, Any]:
    """The JSON of pytest-benchmark. Processor time: other programs count only where they take the caches."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        tests = Path(__file__).with_name("test_kernels_cpu.py")
        command = [sys.executable, "-m", "pytest", "-q", str(tests), f"--benchmark-json={report}"]
        command += ["--benchmark-timer=time.process_time"]
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
        result: dict[str, Any] = json.loads(report.read_text())
        return result


def row(group: str, variants: dict[str, dict[str, Any]]) -> str:
    time = {name: variant["stats"]["min"] * 1e6 for name, variant in variants.items()}
    plain = time.get("torch", time["reference"])
    other = "".join(f"{name} {time[name]:.0f}" for name in ("scikit-learn", "torch.randn") if name in time)
    info = variants["cpp"]["extra_info"]
    return (
        f"| {group} | {time['cpp']:.1f} | {plain:.1f} | {plain / time['cpp']:.1f} | {other} "
        f"| {info['bytes_per_second'] / 1e9:.1f} | {info['share_of_copy']:.2f} |"
    )


def main() -> None:
    load = os.getloadavg()[0]
    report = measure()
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for benchmark in report["benchmarks"]:
        groups.setdefault(benchmark["group"], {})[benchmark["params"]["variant"]] = benchmark
    print(
        HEAD.format(
            version=udse_fast.__version__,
            isa=isa(),
            torch=torch.__version__,
            cpu=report["machine_info"]["cpu"]["brand_raw"],
            load=load,
            cores=os.cpu_count(),
            copy=report["benchmarks"][0]["extra_info"]["copy_bytes_per_second"] / 1e9,
        )
    )
    for group, variants in groups.items():
        print(row(group, variants))


if __name__ == "__main__":
    main()
