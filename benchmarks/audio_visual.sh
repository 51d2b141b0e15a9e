#!/usr/bin/env bash
# The page of results of audio-visual priors: draw mouths, train, enhance with and without them:
#
#     benchmarks/audio_visual.sh SPEECH VALID MIXTURES OUT [STEPS]
#
# SPEECH and VALID are folders of clean speech, MIXTURES holds SET/snr-5/{clean,noisy}/NAME.wav. Some ten minutes of one
# core with 600 steps; a run that was cut goes on.
set -euo pipefail
speech=$1 valid=$2 mixtures=$3 out=$4 steps=${5:-600}
here=$(dirname "$0")
mkdir -p "$out"
[ -d "$out/train" ] || python "$here/synthetic_lips.py" "$speech" "$out/train" --every 16
[ -d "$out/valid" ] || python "$here/synthetic_lips.py" "$valid" "$out/valid" --every 7
udse-fast train --network compact-av --video "$out/train" --valid-video "$out/valid" --init speech --freeze \
    --out "$out/av.safetensors" --steps "$steps" --warm-up-steps 400 --batch-size 4 --learning-rate 3e-3 \
    --decay-share 0.7 --ema 0.95 --speed-range 0 --equalisation 0 --data-note "synthetic lips"
python "$here/audio_visual.py" "$mixtures" "$out/av.safetensors" >"$out/audio_visual.md"
mv "$out/audio_visual.md" "$here/results/audio_visual.md" # whole, or not at all
