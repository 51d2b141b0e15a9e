"""Writes the settings that were tuned for causal streams into the file of the causal posterior network.

Python takes them from `udse_fast/priors/settings.json`; C has the files of the networks alone. To be run after either
of the two has changed: `python scripts/settings_for_c.py`.
"""

from __future__ import annotations

import json
import struct

from udse_fast.priors import BUILT_IN, tuned_settings


def main() -> None:
    path, tuned = BUILT_IN["posterior_causal"], tuned_settings("compact-causal")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, weights = json.loads(content[8 : 8 + length]), content[8 + length :]
    config = json.loads(header["__metadata__"]["udse_fast"])
    config["inference"]["amortised_ddrm"] = {**tuned["all"], **tuned["amortised_ddrm"]}
    header["__metadata__"]["udse_fast"] = json.dumps(config)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the weights stay aligned
    path.write_bytes(struct.pack("<Q", len(text)) + text + weights)


if __name__ == "__main__":
    main()
