#!/usr/bin/env bash
# The page of results of audio-visual priors: draw mouths, train, enhance with and without them:
#
#     benchmarks/audio_visual.sh SPEECH VALID MIXTURES OUT [STEPS [LIST]]
#
# SPEECH and VALID are folders of clean speech, LIST names the recordings of SPEECH to draw from (every 16th of them),
# MIXTURES holds SET/snr-5/{clean,noisy}/NAME.wav. Some five minutes of a free core with 400 steps; a run that was cut
# goes on.
set -euo pipefail
speech=$1 valid=$2 mixtures=$3 out=$4 steps=${5:-400} list=${6:-}
here=$(dirname "$0")
mkdir -p "$out"
[ -d "$out/train" ] || python "$here/synthetic_lips.py" "$speech" "$out/train" --every 16 ${list:+--list "$list"}
[ -d "$out/valid" ] || python "$here/synthetic_lips.py" "$valid" "$out/valid" --every 7
udse-fast train --network compact-av --video "$out/train" --valid-video "$out/valid" --init speech --freeze \
    --out "$out/av.safetensors" --steps "$steps" --warm-up-steps 400 --batch-size 4 --learning-rate 1.5e-3 \
    --decay-share 0.7 --ema 0.97 --speed-range 0 --equalisation 0 --data-note "synthetic lips"
python "$here/audio_visual.py" "$mixtures" "$out/av.safetensors" "$out/scores.csv" --samples 1 >"$out/audio_visual.md"
mv "$out/audio_visual.md" "$here/results/audio_visual.md" # whole, or not at all
