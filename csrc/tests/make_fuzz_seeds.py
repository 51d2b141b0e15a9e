"""Seeds of the fuzzers: small checkpoints whose parts fit together up to the network, and calls. OUT: a folder."""

import json
import random
import struct
import sys
from pathlib import Path


def checkpoint(config: dict[str, object], arrays: dict[str, list[int]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"udse_fast": json.dumps(config)}}
    end = 0
    for name, shape in arrays.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def main() -> None:
    out = Path(sys.argv[1])
    config = {
        "architecture": {"name": "compact", "causal_block": 4, "sigma_data": 0.06, "dilations": [1]},
        "stft": {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": 16000},
        "inference": {"sampler": "ddrm", "ddrm": {"steps": 2, "readout": "blend"}},
    }
    arrays = {"input.weight": [3, 3, 3, 4], "input.bias": [3], "band": [3, 1, 8], "embed.0.weight": [4, 64]}
    (out / "small.safetensors").write_bytes(checkpoint(config, arrays))
    (out / "empty.safetensors").write_bytes(checkpoint(config, {}))
    of_posterior = {
        **config,
        "architecture": {"name": "compact-posterior", "causal_block": 2, "sigma_data": 0.06, "dilations": [1]},
        "inference": {"amortised_ddrm": {"steps": 2, "em_rounds": 1, "listening": 0.5}},
    }
    arrays = {**arrays, "input.weight": [3, 5, 3, 4], "listening.weight": [2, 3, 3, 3]}
    (out / "posterior.safetensors").write_bytes(checkpoint(of_posterior, arrays))
    generator = random.Random(1)
    for number in range(20):
        (out / f"{number}.calls").write_bytes(generator.randbytes(100))


if __name__ == "__main__":
    main()
