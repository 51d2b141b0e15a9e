"""`udse-fast info`: what is here, what is not, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.resources
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udse_fast import __version__
from udse_fast.errors import UdseError

OPTIONAL = {
    "matplotlib": "plot",
    "pesq": "evaluate",
    "pystoi": "evaluate",
    "speechmos": "evaluate",
    "onnxruntime": "export",
    "onnxscript": "export",
    "sounddevice": "live",
    "triton": "triton",
    "websockets": "serve",
    "ray": "ray",
    "opencv-python-headless": "video",
}
"""Optional package: the extra of pyproject.toml that brings it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files to describe."""
    parser.add_argument(
        "checkpoints", nargs="*", metavar="FILE", help="checkpoints to describe, in place of all that is here"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print everything, or what the checkpoints are."""
    everything = [
        ("Versions", _versions()),
        ("Devices", _devices()),
        ("Kernels", _kernels()),
        ("Optional packages", _optional()),
        ("Built-in priors", _priors()),
    ]
    for title, lines in [(name, _checkpoint(name)) for name in arguments.checkpoints] or everything:
        print(title)
        for line in lines:
            print(f"  {line}")
    return 0


def processor() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> Iterator[str]:
    import soundfile

    yield f"udse-fast {__version__} in {Path(__file__).parent.parent}"
    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    for package in ("torch", "numpy", "safetensors", "soxr"):
        yield f"{package} {importlib.metadata.version(package)}"
    yield f"soundfile {soundfile.__version__} (libsndfile {soundfile.__libsndfile_version__})"


def _devices() -> Iterator[str]:
    import torch

    from udse_fast.devices import fast_bfloat16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fast = fast_bfloat16(torch.device("cpu"))
    yield f"cpu: {processor()}, {cores} cores, {torch.get_num_threads()} threads"
    yield f"     {torch.backends.cpu.get_cpu_capability()}, {'fast' if fast else 'no fast'} bfloat16 in torch"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield "cuda: none; " + (
            "torch sees no device, check the driver (nvidia-smi)" if built else "this torch is built for CPUs only"
        )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield (
            f"cuda:{index}: {properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        )


def _kernels() -> Iterator[str]:
    from udse_fast.backends.dispatch import backends, forced_backend, isa

    for backend in backends():
        yield f"{backend.name:<10} {'yes' if backend.available else 'no '}  {backend.detail}"
    for name, check in (("UDSE_BACKEND", forced_backend), ("UDSE_FORCE_ISA", isa)):
        if name in os.environ:
            try:
                check()
                yield f"{name}={os.environ[name]} is set"
            except (UdseError, ImportError) as error:
                yield f"{name}={os.environ[name]} is invalid: {error}"


def _optional() -> Iterator[str]:
    for package, extra in OPTIONAL.items():
        try:
            yield f"{package:<12} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package:<12} not there: pip install udse-fast[{extra}]"


def _priors() -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    from udse_fast.checkpoints.checkpoint import CONFIG_KEY

    folder = importlib.resources.files("udse_fast") / "priors"
    found = False
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else ():
        if not entry.name.endswith(".safetensors"):
            continue
        found = True
        with importlib.resources.as_file(entry) as path:
            try:
                with safe_open(path, framework="numpy") as file:
                    config: dict[str, Any] = json.loads((file.metadata() or {})[CONFIG_KEY])
            except (SafetensorError, OSError, KeyError, ValueError):
                yield f"{entry.name}: damaged; install udse-fast again"
                continue
            size = path.stat().st_size / 1e6
        name, licence = config["architecture"]["name"], config.get("licence", "not stated")
        yield f"{entry.name}: {name}, {size:.1f} MB, licence: {licence}"
        yield from (f"    {line}" for line in _training(config))
    if not found:
        yield "none: this installation is incomplete; give --checkpoint, or install a wheel"


def _training(config: dict[str, Any]) -> Iterator[str]:
    """Facts of a checkpoint that are a number or a text."""
    for name, value in config.get("training", {}).items():
        if isinstance(value, (str, int, float)) and value != "":
            yield f"{name.replace('_', ' ')}: {value}"


def _checkpoint(path: str) -> Iterator[str]:
    """What a checkpoint is, and what it is used with."""
    from udse_fast.checkpoints.checkpoint import load_network
    from udse_fast.networks.score_network import KINDS
    from udse_fast.sampling.samplers import recommended_sampler, samplers_for

    network = load_network(path)
    config, stft = network.config, network.config["stft"]
    size = sum(weight.numel() for weight in network.module.parameters()) / 1e6
    yield f"network: {config['architecture']['name']}, {size:.2f} M parameters, licence: {config['licence']}"
    yield f"kind: {KINDS[network.kind]}" + (", for causal streams" if network.causal_block else "")
    yield f"is told: {', '.join(network.conditions) or 'nothing'}"
    yield f"sampler: {recommended_sampler(config, network.kind)}; there are {', '.join(samplers_for(network.kind))}"
    yield (
        f"spectrograms: {stft['sample_rate']} Hz, {stft['n_fft']} samples, hop {stft['hop_length']}, {stft['window']} "
        f"window, {config['compression']['factor']:g} |z|^{config['compression']['exponent']:g}"
    )
    yield from _training(config)
