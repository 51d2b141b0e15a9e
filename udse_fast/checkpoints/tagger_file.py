"""Read the weights of an audio tagger, without running anything that is in the file."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from udse_fast.checkpoints.fitting import check_weights
from udse_fast.checkpoints.meta import shapes_alone
from udse_fast.checkpoints.torch_file import read_tensors
from udse_fast.errors import UdseError, first_line
from udse_fast.networks.cnn14 import Cnn14

FIRST_KERNEL = "conv_block1.conv1.weight"


def read_tagger(path: str | os.PathLike[str]) -> Cnn14:
    """`Cnn14` with the weights of a file: one of PyTorch, old or new, or safetensors.

    Raises:
        UdseError: unreadable, or of another network.
    """
    path = Path(path)
    try:
        weights = _weights(path)
    except OSError as error:
        raise UdseError(f"expected the file of a tagger, got {path}: {error.strerror or first_line(error)}") from error
    except UdseError as error:
        raise UdseError(f"{path}: {error}") from error
    width = weights[FIRST_KERNEL].shape[0] if FIRST_KERNEL in weights and weights[FIRST_KERNEL].ndim == 4 else 64
    with shapes_alone():
        expected = Cnn14(min(max(width, 1), 1024)).state_dict()
    try:
        check_weights(weights, expected, "give the tagger Cnn14_DecisionLevelMax of PANNs", "download it again")
    except UdseError as error:
        raise UdseError(f"{path}: {error}") from error
    network = Cnn14(width)
    network.load_state_dict(weights)
    return network


def _weights(path: Path) -> dict[str, Tensor]:
    """By name, of one process: parallel training puts "module." before."""
    with open(path, "rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    if is_safetensors:
        try:
            found = load_file(path)
        except (safetensors.SafetensorError, RuntimeError) as error:
            raise UdseError(f"expected a safetensors file, got a damaged one ({first_line(error)})") from error
    else:
        found = read_tensors(path, section="model")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}
