"""A causal prior and a causal posterior network with random weights that compute in no time. OUT: a folder.

For long runs: what a stream does around its networks is the same with them. `native_streams OUT/causal.safetensors
OUT/posterior_causal.safetensors ...`, and the same as UDSE_PRIOR and UDSE_POSTERIOR of run_fuzzers.sh. Needs the
Python package.
"""

import sys
from pathlib import Path

import torch

from udse_fast.checkpoints.checkpoint import save_checkpoint
from udse_fast.networks import build_network
from udse_fast.priors import tuned_settings

STFT = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": 16000}


def main() -> None:
    torch.manual_seed(0)
    tuned = tuned_settings("compact-causal")
    for file, name in (("causal", "compact"), ("posterior_causal", "compact-posterior")):
        architecture = {
            "name": name, "channels": [8, 8], "blocks": [1, 1], "frame_channels": 16, "dilations": [1],
            "embedding": 16, "causal_block": 2,
        }  # fmt: skip
        inference = {"sampler": "amortised_ddrm", "amortised_ddrm": {**tuned["all"], **tuned["amortised_ddrm"]}}
        config = {"architecture": architecture, "stft": STFT, "inference": inference}
        save_checkpoint(Path(sys.argv[1]) / f"{file}.safetensors", build_network(architecture).state_dict(), config)


if __name__ == "__main__":
    main()
