#!/usr/bin/env bash
# Source distribution and wheels for a release: built, made portable, and tested where there is nothing else.
#
#   scripts/wheels.sh OUT [PYTHON...]     e.g. scripts/wheels.sh dist python3.10 python3.13
#
# Needs build and auditwheel with patchelf in the environment that it is called from. A machine with an old glibc (the
# manylinux containers) makes wheels that run nearly everywhere; auditwheel says how far those of this one go.
# TESTS: the tests to run from each wheel (default: all). UDSE_CUDA=ON builds the CUDA kernels in (nvcc).
set -euo pipefail
out=$(realpath -m "${1:?expected the folder for the wheels}")
shift
pythons=("${@:-python3}")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

python3 -m build -q --sdist --outdir "$work/sdist"
tar -xzf "$work"/sdist/*.tar.gz -C "$work"
source=$(echo "$work"/udse_fast-*/)
cp "$work"/sdist/*.tar.gz "$out"

for python in "${pythons[@]}"; do
    printf '\n== %s\n' "$("$python" --version)"
    rm -rf "$work/raw" "$work/wheel" "$work/outside"
    "$python" -m venv "$work/wheel"
    venv=$work/wheel/bin
    "$venv/pip" wheel -q --no-deps -w "$work/raw" -C cmake.define.UDSE_CUDA="${UDSE_CUDA:-OFF}" "$source"
    auditwheel repair -w "$work/repaired" "$work"/raw/*.whl
    wheel=$(echo "$work"/repaired/*.whl)

    "$venv/pip" install -q -c constraints.txt "$wheel" pytest hypothesis
    cp -r "$source" "$work/outside" # what tests read beside the package, without anything to import
    rm -rf "$work/outside/build"
    find "$work"/outside/{udse_fast,kernels} -name '*.py' -delete
    (
        # from here on no compiler, and nothing of the checkout
        cd "$work/outside"
        alone=(env -i HOME="$work" PATH="$venv")
        "${alone[@]}" python - <<'PY'
import sys, time

started = time.process_time()
import udse_fast

seconds = time.process_time() - started
assert udse_fast.__file__.startswith(sys.prefix), udse_fast.__file__
assert "torch" not in sys.modules and "numpy" not in sys.modules, "the import of udse_fast imports something large"
assert seconds < 0.3, f"the import of udse_fast takes {seconds:.2f} s"
print(f"import udse_fast: {1000 * seconds:.0f} ms")
PY
        "${alone[@]}" udse-fast enhance --example -o enhanced.wav
        # shellcheck disable=SC2086 # several files
        "${alone[@]}" python -m pytest -q -p no:cacheprovider ${TESTS:-python_tests}
    )
    mv "$wheel" "$out"
    rm -rf "$work/repaired"
done
ls -l "$out"
