"""`udse-fast export`: a checkpoint for other programs, checked against the network."""

from __future__ import annotations

import argparse
from pathlib import Path

from udse_fast.errors import notice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT",
        help=".safetensors or a published Lightning .ckpt (default: the built-in prior)")  # fmt: skip
    add("-o", "--out", type=Path, required=True, metavar="FILE", help=".safetensors, .pt (TorchScript), "
        ".pt2 (torch.export) or .onnx")  # fmt: skip
    add(
        "--kind",
        choices=["safetensors", "torchscript", "torch.export", "onnx"],
        help="(default: by the extension)",
    )
    add(
        "--frames",
        type=int,
        metavar="T",
        help="a fixed number of frames, torch.export and ONNX (default: any)",
    )
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights in a safetensors file")


def run(arguments: argparse.Namespace) -> int:
    """Write the file, or say why not."""
    from udse_fast.checkpoints.checkpoint import load_network
    from udse_fast.checkpoints.export import export_network

    network = load_network(arguments.checkpoint)
    difference = export_network(network, arguments.out, arguments.kind, arguments.frames, arguments.dtype)
    size = arguments.out.stat().st_size / 1e6
    print(f"{arguments.out}: {size:.1f} MB; within {difference:.1e} of the network")
    if network.causal_block and arguments.out.suffix.lower() != ".safetensors":
        notice("a causal network remembers in .safetensors only: other files see every signal as a whole")
    return 0
