#!/bin/sh
# Everything to be had from a machine with an NVIDIA GPU, nvcc and a CUDA build of torch, in one go or part by part:
#     benchmarks/gpu_session.sh [install] [train] [test] [report]     (default: all four)
# Every part ends by itself within LIMIT seconds; training that was cut off goes on where it was with the next call.
#   SPEECH=folder of clean speech to train on (none: no training), NOISE=folder of noise as well: a joint prior
#   PRIOR=checkpoint to write, NETWORK=ncsnpp-5m, DEVICE=cuda,
#   TRAIN_STEPS=steps in all (default: as many as fit into LIMIT here; their number follows from the speed of the first
#   half of the time, and the learning rate falls to zero over the second),
#   TRAIN_ARGUMENTS=more of udse-fast train (default: "--batch-size 16 --learning-rate 3e-4 --threads 2": three times the
#   published rate, as some ten thousand steps are few; the crops are made by many threads, each of which needs few)
#   REPORT=page to write, REPORT_ARGUMENTS=more arguments of gpu_report.py
#   (folders and files: from the root of the checkout on)
#   PYTHON=interpreter; without a network: PIP_NO_INDEX=1 PIP_FIND_LINKS=folder of wheels (beside torch, triton, numpy,
#   safetensors, tqdm, pytest, scikit-build-core, pybind11, cmake and ninja: soundfile, soxr, cffi, pycparser)
set -eu
cd "$(dirname "$0")/.."
root=$PWD
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-570}
from_root() { case $1 in "" | /*) echo "$1" ;; *) echo "$root/$1" ;; esac; }
PRIOR=$(from_root "${PRIOR:-prior.safetensors}")
REPORT=$(from_root "${REPORT:-benchmarks/results/gpu.md}")
SPEECH=$(from_root "${SPEECH:-}")
NOISE=$(from_root "${NOISE:-}")
export PYTHONUNBUFFERED=1

install() {
  nvidia-smi
  "$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"; print(torch.__version__)'
  PATH=$PATH:/usr/local/cuda/bin
  cuda=ON
  command -v nvcc || { cuda=AUTO; echo "no nvcc: the Triton kernels are used"; }
  # what it builds with is used as it is here, if it is: nothing to fetch
  isolation=
  if "$PYTHON" -c 'import scikit_build_core, pybind11' && command -v cmake && command -v ninja; then
    isolation=--no-build-isolation
  fi
  # its own torch stays as it is
  "$PYTHON" -m pip install -C "cmake.define.UDSE_CUDA=$cuda" --no-deps $isolation .
  for package in numpy soundfile soxr safetensors tqdm pytest; do
    "$PYTHON" -c "import $package" || "$PYTHON" -m pip install "$package"
  done
  "$PYTHON" -c 'import triton' || "$PYTHON" -m pip install triton || echo "no triton: the CUDA kernels are used"
  "$PYTHON" -m udse_fast info
}

# "steps seconds" of the training so far
trained() {
  "$PYTHON" - "$PRIOR.state" <<'END'
import pathlib, sys, torch
file = pathlib.Path(sys.argv[1])
state = torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {"step": 0, "train_seconds": 0}
print(state["step"], round(state["train_seconds"]))
END
}

# Cut off as by Ctrl-C, which saves, with a minute to do so: half of the time twice, so that going on is exercised, too.
train() {
  [ -n "$SPEECH" ] || { echo "train: SPEECH is not set"; return 0; }
  seconds=$((LIMIT / 2 - 60))
  steps=${TRAIN_STEPS:-1000000} # more than there is time for: the rate stays as it is
  decay=
  before=$(trained)
  for part in 1 2; do
    if [ "$part" = 2 ] && [ -z "${TRAIN_STEPS:-}" ]; then
      now=$(trained)
      # at the speed of the first part, with a quarter of the time for starting, validation and saving
      more=$(echo "$before $now" | awk -v s="$seconds" '{ if ($4 > $2) print int(0.75 * s * ($3 - $1) / ($4 - $2)) }')
      [ "${more:-0}" -gt 0 ] || { echo "train: no step in the first half of the time"; return 1; }
      steps=$((${now% *} + more))
      decay="--decay-share $(echo "$more $steps" | awk '{ printf "%.6f", $1 / $2 }')"
    fi
    status=0
    # shellcheck disable=SC2086
    timeout --signal=INT --kill-after=60 "$seconds" "$PYTHON" -m udse_fast train --speech "$SPEECH" \
      ${NOISE:+--noise "$NOISE"} --network "${NETWORK:-ncsnpp-5m}" --steps "$steps" --save-minutes 2 \
      --device "${DEVICE:-cuda}" --out "$PRIOR" $decay \
      ${TRAIN_ARGUMENTS---batch-size 16 --learning-rate 3e-4 --threads 2} || status=$?
    case $status in
      0 | 124) ;;
      137) echo "train: killed while it was saving; the save before stays" ;;
      *) return "$status" ;;
    esac
  done
}

# a GPU that is there must be used: skipped tests are listed
tests() {
  timeout "$LIMIT" "$PYTHON" -m pytest -c "$root/pyproject.toml" --rootdir="$root" -q -p no:cacheprovider \
    "$root"/python_tests/test_cuda_graphs.py "$root"/python_tests/test_optimised_network.py \
    "$root"/python_tests/test_gpu_device.py "$root"/python_tests/test_gpu_backends.py
}

# Lines are written as they are measured: what was cut off is on the page up to there. A prior of `train` is used.
report() {
  case $([ ! -f "$PRIOR" ] || echo "${NETWORK:-ncsnpp-5m}") in
    ncsnpp*) set -- "--${NOISE:+joint-}checkpoint" "$PRIOR" ;;
  esac
  # shellcheck disable=SC2086
  timeout "$LIMIT" "$PYTHON" "$root/benchmarks/gpu_report.py" -o "$REPORT" "$@" ${REPORT_ARGUMENTS:-}
}

[ "$#" -gt 0 ] || set -- install train test report
failed=
for part in "$@"; do
  case $part in
    install) install ;;
    train | report) (cd /tmp && $part) || failed="$failed $part" ;; # the installed package, not the checkout
    test) (cd /tmp && tests) || failed="$failed test" ;;
    *) echo "expected install, train, test or report, got $part" >&2; exit 2 ;;
  esac
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
