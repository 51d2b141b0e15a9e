#!/bin/sh
# Everything to be had from a machine with an NVIDIA GPU, in parts that end by themselves within LIMIT seconds each
# (default: 280) and write into OUT as they go, so that what is cut off is there up to then:
#     OUT=results benchmarks/gpu_session.sh [PART...]     (default: all of build, tests, sanitize, report, samplers, train)
#   build     the package with kernels for the one architecture that is here; nvcc, or else the Triton kernels alone
#   tests     what runs on the device, 8 at a time        -> tests.txt
#   sanitize  the kernels under compute-sanitizer, a case of each  -> sanitize-memcheck.txt, sanitize-racecheck.txt
#   report    network, convolutions (cuDNN's and own), profile, kernels, amortised sampler, DiffUSEEN as published  -> gpu_measured.md
#   samplers  every sampler                               -> gpu_samplers.md
#   train     a prior, which goes on where the part before stopped -> prior.safetensors, state-NN of at most 15 MB each
# Environment (files and folders: from the root of the checkout on):
#   SPEECH, NOISE: folders to train on (SPEECH: else no training; both: a joint prior); STATE: where state-NN of an earlier
#   part lie (default: OUT); NETWORK (ncsnpp-5m); TRAIN_STEPS in all (default 1000000: until the part ends);
#   TRAIN_ARGUMENTS (default "--batch-size 32 --learning-rate 3e-4 --threads 2"); REPORT_ARGUMENTS of gpu_report.py;
#   TESTS: more arguments of pytest; DEVICE (cuda; cpu: a dry run without a GPU, which builds nothing);
#   PYTHON (python3); without a network: PIP_NO_INDEX=1 PIP_FIND_LINKS=folder of wheels
set -eu
cd "$(dirname "$0")/.."
root=$PWD
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-280}
DEVICE=${DEVICE:-cuda}
from_root() { case $1 in "" | /*) echo "$1" ;; *) echo "$root/$1" ;; esac; }
OUT=$(from_root "${OUT:-gpu_results}")
SPEECH=$(from_root "${SPEECH:-}")
NOISE=$(from_root "${NOISE:-}")
STATE=$(from_root "${STATE:-$OUT}")
export PYTHONUNBUFFERED=1
PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$OUT"

# a command that ends with the part; --kill-after: nothing may hang
within() { timeout --signal=INT --kill-after=20 "$@"; }

# of the package that is installed, not of the sources in the current folder
facts() { (cd "$OUT" && "$PYTHON" -m udse_fast info); }

build() {
  [ "$DEVICE" != cpu ] || { facts | tee "$OUT/build.txt"; return; }
  nvidia-smi
  architecture=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  cuda=ON
  command -v nvcc || { cuda=OFF; echo "no nvcc: the Triton kernels are used"; }
  # what it builds with is used as it is here, if it is: nothing to fetch
  isolation=
  if "$PYTHON" -c 'import scikit_build_core, pybind11' && command -v cmake && command -v ninja; then
    isolation=--no-build-isolation
  fi
  # its own torch stays as it is
  within "$LIMIT" "$PYTHON" -m pip install -C "cmake.define.UDSE_CUDA=$cuda" \
    -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$architecture" --no-deps $isolation .
  for package in numpy soundfile soxr safetensors tqdm pytest xdist; do
    "$PYTHON" -c "import $package" || "$PYTHON" -m pip install "$(echo "$package" | sed s/xdist/pytest-xdist/)" ||
      [ "$package" = xdist ]
  done
  "$PYTHON" -c 'import triton' || "$PYTHON" -m pip install triton || echo "no triton: the CUDA kernels are used"
  facts | tee "$OUT/build.txt"
}

run_tests="-m pytest -c $root/pyproject.toml --rootdir=$root -p no:cacheprovider -q"

# a GPU that is there must be used: skipped tests are listed
tests() {
  together=
  [ "$DEVICE" = cpu ] || { "$PYTHON" -c 'import xdist' 2>/dev/null && together="-n 8"; }
  # shellcheck disable=SC2086
  within "$LIMIT" "$PYTHON" $run_tests -rs $together "$root"/python_tests/test_gpu_device.py \
    "$root"/python_tests/test_gpu_backends.py "$root"/python_tests/test_cuda_graphs.py \
    "$root"/python_tests/test_optimised_network.py ${TESTS:-} >"$OUT/tests.txt" 2>&1
  status=$?
  tail -n 20 "$OUT/tests.txt"
  return $status
}

# Memory, then shared memory: a case of every kernel, as the tools slow all down by ten times and more.
sanitize() {
  cases="norm_of_two_maps or measured_sum or resample_up_packed or nmf or diffuseen or (convolution and (residual or two_maps))"
  [ "$DEVICE" != cpu ] || set -- echo
  for tool in memcheck racecheck; do
    # shellcheck disable=SC2086
    "$@" within $((LIMIT / 2)) compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" $run_tests \
      "$root"/python_tests/test_gpu_backends.py -k "cuda and not replayed and not compile and ($cases)" >"$OUT/sanitize-$tool.txt" 2>&1 || { tail -n 20 "$OUT/sanitize-$tool.txt"; return 1; }
    tail -n 3 "$OUT/sanitize-$tool.txt"
  done
}

# Lines are written as they are measured: what was cut off is on the page up to there.
measured() {
  page=$1
  shift
  case $([ ! -f "$OUT/prior.safetensors" ] || echo "${NETWORK:-ncsnpp-5m}") in
    ncsnpp*) set -- "$@" "--${NOISE:+joint-}checkpoint" "$OUT/prior.safetensors" ;;
  esac
  # shellcheck disable=SC2086
  within "$LIMIT" "$PYTHON" "$root/benchmarks/gpu_report.py" -o "$OUT/$page" --device "$DEVICE" "$@" ${REPORT_ARGUMENTS:-}
}
report() { measured gpu_measured.md --tables network convolutions own_convolutions profile kernels tiles amortised published; }
samplers() { measured gpu_samplers.md --tables samplers; }

# Cut off as by Ctrl-C, which saves, with 40 seconds to do so.
train() {
  [ -n "$SPEECH" ] || { echo "train: SPEECH is not set"; return 0; }
  prior=$OUT/prior.safetensors
  if [ ! -f "$prior.state" ] && ls "$STATE"/state-* >/dev/null 2>&1; then cat "$STATE"/state-* >"$prior.state"; fi
  status=0
  # shellcheck disable=SC2086
  timeout --signal=INT --kill-after=40 $((LIMIT - 40)) "$PYTHON" -m udse_fast train --speech "$SPEECH" \
    ${NOISE:+--noise "$NOISE"} --network "${NETWORK:-ncsnpp-5m}" --steps "${TRAIN_STEPS:-1000000}" --save-minutes 2 \
    --device "$DEVICE" --out "$prior" ${TRAIN_ARGUMENTS---batch-size 32 --learning-rate 3e-4 --threads 2} || status=$?
  case $status in
    0 | 124) ;;
    137) echo "train: killed while it was saving; the save before stays" ;;
    *) return "$status" ;;
  esac
  rm -f "$OUT"/state-*
  split -b 15000000 -d "$prior.state" "$OUT/state-"
  rm "$prior.state" # it is in the pieces, which can be carried one by one
}

[ "$#" -gt 0 ] || set -- build tests sanitize report samplers train
failed=
for part in "$@"; do
  case $part in
    build) build ;;
    # the installed package, not the checkout
    tests | sanitize | report | samplers | train) (cd /tmp && set +e && $part) || failed="$failed $part" ;;
    *) echo "expected build, tests, sanitize, report, samplers or train, got $part" >&2; exit 2 ;;
  esac
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
