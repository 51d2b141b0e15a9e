#!/usr/bin/env bash
# What `reuse_estimate` costs: the published samplers that have a corrector with the built-in prior, with two network
# calls a step and with one:
#
#     benchmarks/reuse_estimate.sh MIXTURES OUT [SAMPLER ...]
#
# MIXTURES holds SET/snrN/{clean,noisy}/NAME.wav. A run that was cut goes on; the page is made of what there is.
set -euo pipefail
mixtures=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- diffuseen udiffse_plus depse_il depse_tl udiffse
here=$(dirname "$0")
score() { udse-fast evaluate --mixtures "$mixtures" --out "$out" --sampler "$sampler" --jobs 1 --threads 1 "$@"; }
for sampler in "$@"; do
    score
    score --set reuse_estimate=true --name "$sampler, reused"
done
python "$here/reuse_estimate_page.py" "$out" >"$out/reuse_estimate.md"
mv "$out/reuse_estimate.md" "$here/results/reuse_estimate.md" # whole, or not at all
