"""Checkpoints: one safetensors file with the configuration as JSON in its header. Other kinds can be read.

The header's metadata has one key, "udse_fast", whose value is the JSON text of the configuration::

    {"format_version": 1,
     "architecture": {"name": "ncsnpp" | "compact", **arguments of its class},
     "sde": {"name": "ouve", "gamma": 1.5, "sigma_min": 0.05, "sigma_max": 0.5} | {"name": "ve"},
     "stft": {"n_fft": 510, "hop_length": 128, "window": "hann", "sample_rate": 16000},
     "compression": {"exponent": 0.5, "factor": 0.15},
     "training": {facts: numbers and strings},
     "inference": {"sampler": name, "all": {settings of `Enhancer`}, name of a sampler: {more of them, with it}},
     "licence": "..."}

Matrices and kernels may be stored in 16 bits; vectors (biases, norms, Fourier frequencies) stay in float32.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from udse_fast.atomic import atomic_write
from udse_fast.audio.spectral import WINDOWS
from udse_fast.checkpoints.fitting import check_weights
from udse_fast.checkpoints.lightning import EXTRACTOR, read_lightning
from udse_fast.checkpoints.meta import shapes_alone
from udse_fast.devices import usable_device
from udse_fast.errors import UdseError, first_line
from udse_fast.networks import build_network
from udse_fast.networks.av_hubert import UNUSED, av_hubert_arguments
from udse_fast.networks.base import Network
from udse_fast.networks.score_network import PRECISIONS, ScoreGraph, ScoreNetwork
from udse_fast.networks.visual_encoder import VisualEncoder, build_visual_encoder
from udse_fast.priors import BUILT_IN, tuned_settings
from udse_fast.sampling.sde import OUVE, SDES, make_sde

FORMAT_VERSION = 1
CONFIG_KEY = "udse_fast"
CONFIG_FILE = "udse_fast.json"
_DEFAULTS: dict[str, Any] = {
    "sde": OUVE().config,
    "stft": {"n_fft": 510, "hop_length": 128, "window": "hann", "sample_rate": 16000},
    "compression": {"exponent": 0.5, "factor": 0.15},
    "training": {},
    "inference": {},
    "licence": "not stated",
}


def load_network(
    path: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    precision: str | None = None,
) -> ScoreNetwork:
    """Load a score network. The content of the file tells its kind.

    Pickled code never runs. A TorchScript file is itself a program, for PyTorch's own interpreter.

    Args:
        path: a safetensors checkpoint, an exported TorchScript file, or a PyTorch Lightning checkpoint of the
            published models; "speech" (or None), "causal" and "joint" are the built-in priors.
        device: "cpu", "cuda", "cuda:1", "auto".
        precision: "float32" (default), "bfloat16" or "float16".

    Raises:
        UdseError: the file is missing, damaged or of another kind, or there is no such device.
    """
    try:
        name = "speech" if path is None else os.fsdecode(path)
        path = BUILT_IN.get(name, Path(name))
        with open(path, "rb") as file:
            start = file.read(9)
    except (OSError, TypeError, ValueError) as error:  # the others: no path, no name that a file can have
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UdseError(f"expected a checkpoint file, got {path!s}: {reason}") from error
    try:
        if start.startswith(b"PK\x03\x04"):
            network = _load_zip(path)
        elif start[8:] == b"{":
            network = _load_safetensors(path)
        else:
            found = "a file of another kind, or an incomplete one" if start else "an empty file"
            raise UdseError(f"expected a checkpoint (.safetensors, TorchScript .pt, Lightning .ckpt), got {found}")
    except UdseError as error:
        raise UdseError(f"{path}: {error}") from error
    if name in BUILT_IN:  # their settings may be tuned again without touching the weights
        network.config["inference"] = {
            **tuned_settings(network.config["training"].get("network", "")),
            **tuned_settings(name),
        }
    return network.to(device, precision)


def load_visual_encoder(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> VisualEncoder:
    """Load the visual encoder that is inside an audio-visual checkpoint, frozen.

    Args:
        path: the authors' Lightning file, one of `udse-fast train --video`, or a safetensors file with nothing but the
            encoder of an authors' file, names as there ("dnn.feature_extractor. ..."), whose metadata may say its
            number of attention heads ({"config": '{"heads": 12, ...}'}), the one size that no weight tells.
        device: see `load_network`.

    Returns:
        encoder(frames (B, 1, Tv, 88, 88), grey pixels 0 to 255) -> features (B, Tv, p) float32.

    Raises:
        UdseError: the file cannot be read, or has no encoder of a kind that is known.
    """
    encoder = _encoder_alone(path) or load_network(path).visual_encoder
    if encoder is None:
        raise UdseError(f"{path}: expected a checkpoint with a visual encoder that is known, got one without")
    return encoder.to(usable_device(device)).eval().requires_grad_(False)


def _encoder_alone(path: str | os.PathLike[str]) -> VisualEncoder | None:
    """Of a safetensors file that has nothing else; None for other files."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name.removeprefix("dnn.") for name in file.keys()]  # noqa: SIM118 (not a dictionary)
            if not names or not all(name.startswith(EXTRACTOR) for name in names):
                return None
            weights = {name.removeprefix("dnn.")[len(EXTRACTOR) :]: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            told = json.loads((file.metadata() or {}).get("config", "{}"))
        weights = {name: weight for name, weight in weights.items() if not name.startswith(UNUSED)}
        arguments = av_hubert_arguments({name: tuple(weight.shape) for name, weight in weights.items()})
        encoder = build_visual_encoder({**arguments, "heads": told.get("heads", arguments["heads"])})
        encoder.load_state_dict(weights)
    except (safetensors.SafetensorError, OSError, TypeError):
        return None
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
        raise UdseError(f"{path}: expected the weights of an AV-HuBERT, got others ({first_line(error)})") from error
    return encoder


def save_checkpoint(
    path: str | os.PathLike[str],
    state_dict: dict[str, Tensor],
    config: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a safetensors checkpoint; the file appears only when it is whole.

    Args:
        state_dict: weights of the network that `config["architecture"]` describes.
        config: see the module's description; missing sections get the published settings.
        dtype: float32, bfloat16 or float16, of the stored matrices and kernels.

    Raises:
        UdseError: the file cannot be written.
    """
    if dtype not in PRECISIONS.values():
        raise UdseError(f"expected {', '.join(PRECISIONS)} as the dtype of a checkpoint, got {dtype}")
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.ndim > 1 else torch.float32).contiguous()
        for name, tensor in state_dict.items()
    }
    header = {CONFIG_KEY: json.dumps(complete_config(config))}
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except safetensors.SafetensorError as error:
            raise OSError(first_line(error)) from error


def fingerprint(network: ScoreNetwork) -> str:
    """Return a short hash of configuration and weights: what the scores of a network depend on."""
    digest = hashlib.sha256(json.dumps(network.config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.graph.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:16]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the numbers of a tensor, of any dtype and device, as they are in memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""  # an empty one may have any stride


def complete_config(config: dict[str, Any]) -> dict[str, Any]:
    """Complete a configuration with the published settings where it has none, and check it.

    Raises:
        UdseError: a section is missing or malformed.
    """
    complete = {"format_version": FORMAT_VERSION, **_DEFAULTS, **config}
    if complete["format_version"] != FORMAT_VERSION:
        raise UdseError(
            f"expected a checkpoint of format {FORMAT_VERSION}, got {complete['format_version']!r}: "
            "use a newer udse-fast"
        )
    for section in ("architecture", "sde", "stft", "compression", "training", "inference"):
        if not isinstance(complete.get(section), dict):
            raise UdseError(
                f"expected the section {section!r} in the configuration of a checkpoint, got {complete.get(section)!r}"
            )
    for section in ("sde", "stft", "compression"):
        defaults = _DEFAULTS[section]
        if section == "sde":
            defaults = _sde_defaults(complete["sde"].get("name", OUVE.name))
        if unknown := complete[section].keys() - defaults.keys():
            known, found = ", ".join(defaults), ", ".join(sorted(unknown))
            raise UdseError(f"expected {known} in the section {section!r}, got {found} too: use a newer udse-fast?")
        complete[section] = {**defaults, **complete[section]}
        for name, default in defaults.items():
            value = complete[section][name]
            if not _is_like(value, default) or (name == "name" and value != default):
                raise UdseError(f"expected a {name} like {default!r} in the section {section!r}, got {value!r}")
    stft = complete["stft"]
    if stft["window"] not in WINDOWS:
        raise UdseError(f"expected the window {' or '.join(WINDOWS)} in the section 'stft', got {stft['window']!r}")
    if stft["hop_length"] > (stft["n_fft"] + 1) // 2:
        raise UdseError(
            f"expected a hop_length of at most half the n_fft of {stft['n_fft']} in the section 'stft', "
            f"got {stft['hop_length']}"
        )
    make_sde(complete["sde"])
    for name, value in complete["inference"].items():
        if not isinstance(value, str if name == "sampler" else dict):
            wanted = "the name of a sampler" if name == "sampler" else "a dictionary of settings"
            raise UdseError(f"expected {wanted} as {name!r} in the section 'inference', got {value!r}")
    return complete


def _sde_defaults(name: Any) -> dict[str, Any]:
    """Name and constants of a process as published.

    Raises:
        UdseError: there is no process of that name.
    """
    if name not in SDES:
        raise UdseError(f"expected the name {' or '.join(SDES)} in the section 'sde', got {name!r}")
    return SDES[name]().config


def _is_like(value: Any, default: str | int | float) -> bool:
    """Check that a value is a string, a positive whole number or a positive number, as the default is."""
    if isinstance(default, str) or isinstance(value, (str, bool)):
        return isinstance(default, str) and isinstance(value, str)
    kinds = (int,) if isinstance(default, int) else (int, float)
    return isinstance(value, kinds) and 0 < value < float("inf")


def _load_safetensors(path: Path) -> ScoreNetwork:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise UdseError(
            f"expected a safetensors checkpoint, got a damaged one ({first_line(error)}): download or copy it again"
        ) from error
    if CONFIG_KEY not in metadata:
        raise UdseError(
            f"expected a safetensors file with the key {CONFIG_KEY!r} in its header, got one of "
            "another program: make it with udse-fast train or export"
        )
    return _assembled(state_dict, _parsed(metadata[CONFIG_KEY]))


def _load_zip(path: Path) -> ScoreNetwork:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            config_names = [name for name in names if name.endswith(f"extra/{CONFIG_FILE}")]
            config = archive.read(config_names[0]).decode() if config_names else ""
            damaged = archive.testzip() if config else None  # PyTorch does not look at the checksums
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        raise UdseError(
            "expected a TorchScript or Lightning checkpoint, got an incomplete one "
            f"({first_line(error)}): download or copy it again"
        ) from error
    if any(name.endswith("/constants.pkl") for name in names):
        if not config:
            raise UdseError(
                f"expected TorchScript with the configuration {CONFIG_FILE} inside, got that of "
                "another program: make it with udse-fast export"
            )
        if damaged:
            raise UdseError(f"expected a TorchScript file, got a damaged one ({damaged}): copy it again")
        return _load_torchscript(path, config)
    if any(name.endswith("/data.pkl") for name in names):
        state_dict, settings = read_lightning(path)
        return _assembled(state_dict, settings)
    raise UdseError(
        "expected a TorchScript or Lightning checkpoint, got another zip archive; instead of a "
        "torch.export file (.pt2), give the checkpoint that it was made from"
    )


def _load_torchscript(path: Path, config: str) -> ScoreNetwork:
    settings = complete_config(_parsed(config))
    planned = _planned(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # deprecated, and what older users have
            module = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise UdseError(
            f"expected a TorchScript file, got a damaged one ({first_line(error)}): copy it again"
        ) from error
    return ScoreNetwork(planned, settings, module)


def _planned(config: dict[str, Any]) -> Network:
    """Build the network of a configuration on the meta device: a foreign file may ask for any amount of memory.

    Raises:
        UdseError: the network does not take the bins of the STFT.
    """
    bins = config["stft"]["n_fft"] // 2 + 1
    with shapes_alone():
        network = build_network(config["architecture"])
    if not _takes(network, bins):
        raise UdseError(
            f"expected an n_fft in the section 'stft' that gives the bins of the network, "
            f"got {config['stft']['n_fft']}, which gives {bins}"
        )
    return network


def _takes(network: Network, bins: int) -> bool:
    """Whether spectrograms of so many bins go through a network on the meta device."""
    if network.bins is not None:
        return network.bins == bins
    inputs = [x.to("meta") for x in network.example(1, bins, 1)]
    with shapes_alone(), torch.no_grad():  # imports torch's compiler, which takes a second
        try:
            ScoreGraph(network, OUVE())(*inputs)
        except RuntimeError:
            return False
    return True


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UdseError(f"expected the configuration as JSON, got {first_line(error)}") from error
    if not isinstance(config, dict):
        raise UdseError(f"expected the configuration as a JSON object, got {text[:40]!r}")
    return config


def _assembled(state_dict: dict[str, Tensor], config: dict[str, Any]) -> ScoreNetwork:
    config = complete_config(config)
    check_weights(
        state_dict,
        _planned(config).state_dict(),
        "weights and configuration do not belong together",
        "the training diverged, take an earlier checkpoint",
    )
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        module = build_network(config["architecture"])
    module.load_state_dict(state_dict)
    return ScoreNetwork(module, config)
