"""Whether an installation builds the CUDA kernels: a compiler that does not do must not take the CPU's part with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CUDA_CMAKE = Path(__file__).parents[1] / "cmake" / "cuda.cmake"


@pytest.mark.needs("nvcc")
def test_a_compiler_without_the_architectures_does_not_end_the_installation(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.25)\nproject(of_a_cpu LANGUAGES CXX)\ninclude({CUDA_CMAKE})\n"
    )
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), "-DCMAKE_CUDA_ARCHITECTURES=35-real"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "does not compile for 35-real; UDSE_CUDA=ON shows why" in result.stdout
