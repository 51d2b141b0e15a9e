#!/usr/bin/env bash
# Ex-Diff beside SGMSE+ on equal terms: one compact network, the same crops and steps, told a tagger's latent or not:
#
#     benchmarks/ex_diff.sh SPEECH NOISE MIXTURES OUT [STEPS [INIT [TAGGER]]]
#
# MIXTURES holds SET/snrN/{clean,noisy}/NAME.wav. Both start from INIT: the speech prior, or a conditional network that was
# trained before. TAGGER is Cnn14_DecisionLevelMax of PANNs; without it one of random weights and a quarter of the width is
# made, which shows the way and not what tags are worth. A run that was cut goes on.
set -euo pipefail
speech=$1 noise=$2 mixtures=$3 out=$4 steps=${5:-1200} init=${6:-speech} tagger=${7:-$4/tagger.pth}
mkdir -p "$out"
[ -e "$tagger" ] || python -c "
import sys, torch
from udse_fast.networks.cnn14 import Cnn14
torch.manual_seed(0)
torch.save({'model': Cnn14(16).state_dict()}, sys.argv[1])" "$tagger"
train() {
    udse-fast train --network compact-conditional --speech "$speech" --noise "$noise" --init "$init" --steps "$steps" \
        --batch-size 4 --learning-rate 1.5e-3 --decay-share 0.7 --ema 0.95 --seed 1 "$@"
}
score() { udse-fast evaluate --mixtures "$mixtures" --out "$out" --metrics si estoi "$@"; }
train --out "$out/sgmse.safetensors"
train --out "$out/ex_diff.safetensors" --tagger "$tagger"
score --checkpoint "$out/sgmse.safetensors"
score --checkpoint "$out/ex_diff.safetensors" --tagger "$tagger"
