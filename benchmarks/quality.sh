#!/usr/bin/env bash
# Scores of every sampler and of causal streams, the page of results, and the README's tables:
#
#     benchmarks/quality.sh MIXTURES OUT [PEERS.csv PEER_MIXTURES]
#
# MIXTURES holds SET/snrN/{clean,noisy}/NAME.wav; PEERS.csv has the scores of other systems on files of PEER_MIXTURES.
# Folders OUT/ready/NAME with enhanced files of other systems, in the layout of MIXTURES, are scored too.
# A run that was cut goes on.
set -euo pipefail
mixtures=$1 out=$2 peers=${3:-} peer_mixtures=${4:-}
score() { udse-fast evaluate --mixtures "$mixtures" --out "$out" "$@"; }
score --write "$out/enhanced/amortised_ddrm" # the default
score --causal --write "$out/enhanced/amortised_ddrm (causal)"
for folder in "$out"/ready/*/; do [ ! -d "$folder" ] || score --enhanced "$folder"; done
for mode in "oracle" "pure oracle"; do score --oracle "$mode"; done
for sampler in ddrm amortised diffuseen udiffse_plus depse_il depse_tl paradiffuse_en paradiffuse_in udiffse; do
    score --sampler "$sampler"
done
score --sampler paradiffuse_en --readout mean --name "paradiffuse_en (mean)"
# a stream has to get to know the noise: without the first second
for system in "amortised_ddrm" "amortised_ddrm (causal)"; do
    udse-fast evaluate --mixtures "$mixtures" --out "$out/after_1s" --skip-seconds 1 --metrics si pesq estoi \
        --enhanced "$out/enhanced/$system"
done
if [ -n "$peers" ]; then
    for causal in "" --causal; do
        udse-fast evaluate --mixtures "$peer_mixtures" --only "$peers" --out "$out/peers" $causal
    done
fi
here=$(dirname "$0")
python "$here/quality_page.py" "$out" ${peers:+"$peers"} >"$out/quality.md"
mv "$out/quality.md" "$here/results/quality.md" # whole, or not at all
python "$here/readme_scores.py"
