#!/bin/sh
# On a machine with an NVIDIA GPU, nvcc and a CUDA build of torch: build with the CUDA kernels, run the tests that need
# the GPU, write the report. PYTHON picks the interpreter, REPORT the page; further arguments go to the report.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
REPORT=${REPORT:-benchmarks/results/gpu.md}

nvidia-smi
"$PYTHON" -m pip install -C cmake.define.UDSE_CUDA=ON --no-deps .
"$PYTHON" -m pip install pytest soundfile soxr safetensors tqdm
"$PYTHON" -c 'import triton' || "$PYTHON" -m pip install triton
cd python_tests # the installed package, not the checkout
"$PYTHON" -m udse_fast info
"$PYTHON" -m pytest -c ../pyproject.toml --rootdir=.. -q \
  test_gpu_backends.py test_gpu_device.py test_optimised_network.py
cd ..
"$PYTHON" benchmarks/gpu_report.py -o "$REPORT" "$@"
