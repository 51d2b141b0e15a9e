"""Speed and accuracy of the samplers on a GPU, as a Markdown page.

    python benchmarks/gpu_report.py -o benchmarks/results/gpu.md
    python benchmarks/gpu_report.py --tiny --device cpu -o trial.md  # the same, in seconds, without a GPU

Times are medians over runs after one to warm up. Weights are random unless --checkpoint (speech) and
--joint-checkpoint are given: speed does not depend on them, the differences to float32 do.
"""

from __future__ import annotations

import argparse
import copy
import importlib.resources
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from udse_fast import __version__
from udse_fast.backends import backends
from udse_fast.checkpoint import load_network
from udse_fast.coefficients import Coefficients
from udse_fast.commands.info import processor
from udse_fast.evaluation.metrics import si_sdr
from udse_fast.kernels.complex_normal import NoiseKey
from udse_fast.kernels.likelihood_gradient import noise_posterior_guidance
from udse_fast.kernels.nmf_is import nmf_update
from udse_fast.networks.ncsnpp import PUBLISHED_SIZES, NCSNpp
from udse_fast.networks.optimised import optimise
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.output import read_out
from udse_fast.samplers import SAMPLERS, posterior_sample, sampler_names
from udse_fast.sde import OUVE
from udse_fast.spectral import Spectral

SPEECH, NOISE = 1, 0
TINY = {"nf": 8, "ch_mult": (1, 1), "image_size": 256}
# one update reads s, S, x and writes s, P; one NMF iteration reads P twice
BYTES_PER_BIN = {"diffuseen update": (3 * 8, 8 + 4), "nmf iteration": (0, 2 * 4)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help="Markdown file")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--precision", help="default: bfloat16, float16 before sm_80, float32 on a CPU")
    add("--samplers", nargs="+", default=[name for name in sampler_names() if name != "prior"])
    add("--checkpoint", type=Path, help="NCSN++ of speech")
    add("--joint-checkpoint", type=Path, help="NCSN++ of speech and noise, for ParaDiffUSE")
    add("--seconds", type=float, default=10.0, help="of audio (default: %(default)s)")
    add("--steps", type=int, default=30)
    add("--samples", type=int, default=4)
    add("--em-rounds", type=int, default=5)
    add("--runs", type=int, default=3)
    add("--check-seconds", type=float, default=0.5, help="of audio, compared with float32 on the CPU")
    add("--check-steps", type=int, default=4)
    add("--tiny", action="store_true", help="a small network and short audio: whether the report works")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.seconds, arguments.steps, arguments.samples, arguments.em_rounds = 0.25, 2, 2, 2
        arguments.runs, arguments.check_seconds, arguments.check_steps = 1, 0.25, 2
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", encoding="utf-8") as page:
        for line in report(arguments):
            print(line, file=page, flush=True)
    print(arguments.output)


def report(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the page."""
    device = torch.device(arguments.device)
    precision = arguments.precision or default_precision(device)
    yield "# Speed on a GPU" if device.type == "cuda" else "# Speed on a CPU (a trial of the GPU report)"
    yield ""
    yield from machine(device)
    peak = matrix_peak(device, precision, 256 if device.type == "cpu" else 8192)
    copied = copy_rate(device, 2**22 if device.type == "cpu" else 2**30)
    yield (
        f"- measured peaks: {peak / 1e12:.3g} TFLOP/s ({precision} matrix product), "
        f"{copied / 1e9:.4g} GB/s (copy, read and written)"
    )
    size = "tiny" if arguments.tiny else "published"
    yield (
        f"- {size} NCSN++ in {precision}, {arguments.steps} steps, {arguments.samples} samples, "
        f"{arguments.seconds:g} s of audio"
    )
    yield ""
    networks = {
        joint: make_network(arguments.joint_checkpoint if joint else arguments.checkpoint, joint, arguments.tiny)
        for joint in (False, True)
    }
    fast = {joint: optimise(network).to(device, precision) for joint, network in networks.items()}

    yield "## Samplers"
    yield ""
    yield "The published numbers are RTF 1.62 (one sample, no guidance) to 32.5 on a Tesla T4."
    yield ""
    yield (
        "| sampler | RTF | network | TFLOP/s in the network | of the peak | peak memory, GiB "
        "| SI-SDR to CPU float32, dB | largest difference in float32 |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name in arguments.samplers:
        joint = SAMPLERS[name].noise == "score"
        yield sampler_row(name, arguments, networks[joint], fast[joint], device, peak)
    yield ""
    yield "`network` is the share of the time that the calls of the network take when made alone."
    yield ""

    yield "## Kernels"
    yield ""
    yield "| operation | backend | microseconds | GB/s | of the copy |"
    yield "| --- | --- | --- | --- | --- |"
    frames = 32 if arguments.tiny else 1280
    for backend in backends():
        if backend.available and (
            backend.name in ("reference", "cpp") or device.type == "cuda" or os.environ.get("TRITON_INTERPRET")
        ):
            if backend.name == "cpp" and device.type == "cuda":
                continue
            yield from kernel_rows(backend.name, arguments.samples, frames, device, copied)
    yield ""

    yield "## The network"
    yield ""
    yield "| form | milliseconds a call | TFLOP/s | of the peak |"
    yield "| --- | --- | --- | --- |"
    frames = 64 if arguments.tiny else 1280
    plain = ScoreNetwork(networks[False].module, networks[False].config).to(device, precision)
    flop = network_flop(networks[False], arguments.samples, frames)
    for form, network in (
        ("plain", plain),
        ("fused, replayed from CUDA graphs" if device.type == "cuda" else "fused", fast[False]),
    ):
        seconds = call_seconds(network, arguments.samples, frames, device, arguments.runs)
        yield f"| {form} | {1000 * seconds:.3g} | {flop / seconds / 1e12:.3g} | {flop / seconds / peak:.0%} |"


def sampler_row(
    name: str,
    arguments: argparse.Namespace,
    plain: ScoreNetwork,
    fast: ScoreNetwork,
    device: torch.device,
    peak: float,
) -> str:
    """One row of the table of samplers."""

    def run(network: ScoreNetwork, on: torch.device, seconds: float, steps: int) -> tuple[torch.Tensor, int, int]:
        spectral = Spectral()
        audio = recording(seconds, spectral.sample_rate)
        mixture, level = spectral.analyse(audio.to(on))

        def score(state: torch.Tensor, t: Any, source: str) -> torch.Tensor:
            times = torch.full((state.shape[0],), float(t), device=on)
            return network.score(state, times, SPEECH if source == "speech" else NOISE)

        posterior = posterior_sample(
            mixture, score, name, steps=steps, samples=arguments.samples, em_rounds=arguments.em_rounds
        )
        spectrogram = read_out(posterior, mixture, level, spectral, "auto")
        return spectral.istft(spectrogram, len(audio)), posterior.score_evaluations, mixture.shape[1]

    with torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = median_seconds(lambda: run(fast, device, arguments.seconds, arguments.steps), device, arguments.runs)
        memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
        _, calls, frames = run(fast, device, arguments.seconds, arguments.steps)
        network_seconds = calls * call_seconds(fast, arguments.samples, frames, device, arguments.runs)
        flop = calls * network_flop(plain, arguments.samples, frames)

        check = arguments.check_seconds, arguments.check_steps
        expected = run(plain, torch.device("cpu"), *check)[0].numpy()
        rounded = run(fast, device, *check)[0].cpu().numpy()
        exact = optimise(plain).to(device, "float32")
        difference = np.abs(run(exact, device, *check)[0].cpu().numpy() - expected).max() / np.abs(expected).max()
    return (
        f"| {name} | {seconds / arguments.seconds:.3g} | {network_seconds / seconds:.0%} "
        f"| {flop / network_seconds / 1e12:.3g} | {flop / network_seconds / peak:.0%} | {memory:.2f} "
        f"| {si_sdr(expected, rounded):.1f} | {difference:.1e} |"
    )


def kernel_rows(
    backend: str,
    samples: int,
    frames: int,
    device: torch.device,
    copied: float,
    bins: int = 256,
    rank: int = 4,
) -> Iterator[str]:
    """Time and memory traffic of the update of DiffUSEEN and of an NMF iteration."""

    def cplx(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.complex64, device=device)

    state, score, mixture = cplx(samples, bins, frames), cplx(samples, bins, frames), cplx(bins, frames)
    W, H = torch.rand(bins, rank, device=device), torch.rand(rank, frames, device=device)
    power = mixture.abs().square()
    c = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30)
    key = NoiseKey(0, "predictor_speech")
    operations: dict[str, Callable[[], object]] = {
        "diffuseen update": lambda: noise_posterior_guidance(state, score, mixture, (W, H), c, key, out=state),
        "nmf iteration": lambda: nmf_update(power, W, H),
    }
    with forced(backend):
        for name, operation in operations.items():
            per_sample, shared = BYTES_PER_BIN[name]
            seconds = median_seconds(operation, device, 20 if device.type == "cuda" else 3)
            rate = bins * frames * (samples * per_sample + shared) / seconds
            yield f"| {name} | {backend} | {1e6 * seconds:.4g} | {rate / 1e9:.4g} | {rate / copied:.0%} |"


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """UDSE_BACKEND for a while."""
    before = os.environ.get("UDSE_BACKEND")
    os.environ["UDSE_BACKEND"] = backend
    try:
        yield
    finally:
        os.environ.pop("UDSE_BACKEND")
        if before is not None:
            os.environ["UDSE_BACKEND"] = before


def machine(device: torch.device) -> Iterator[str]:
    """What was measured on what."""
    yield f"- {platform.system()} {platform.machine()}, {processor()}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
        yield (
            f"- {properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB; driver and power limit: {driver}"
        )
    yield (
        f"- udse-fast {__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}"
    )
    for backend in backends():
        yield f"- {backend.name}: {'yes' if backend.available else 'no'}, {backend.detail}"


def default_precision(device: torch.device) -> str:
    """The fast one of the device."""
    if device.type == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def make_network(checkpoint: Path | None, joint: bool, tiny: bool) -> ScoreNetwork:
    """A trained network, or one with random weights that all matter, in float32 on the CPU."""
    if checkpoint is not None:
        return load_network(checkpoint)
    torch.manual_seed(0)
    module = NCSNpp(
        **(TINY | {"joint": joint} if tiny else PUBLISHED_SIZES["ncsnpp-5m-joint" if joint else "ncsnpp-5m"])
    )
    for parameter in module.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    stft = {"n_fft": 510, "hop_length": 128, "window": "hann", "sample_rate": 16000}
    config = {"architecture": {"name": "ncsnpp", "joint": joint}, "sde": OUVE().config, "stft": stft}
    return ScoreNetwork(module, config)


def recording(seconds: float, rate: int) -> torch.Tensor:
    """The noisy example, repeated."""
    example = importlib.resources.files("udse_fast") / "examples" / "noisy.flac"
    with importlib.resources.as_file(example) as path:
        audio, _ = soundfile.read(path, dtype="float32")
    return torch.from_numpy(np.resize(audio, max(1, round(seconds * rate))))


def network_flop(network: ScoreNetwork, samples: int, frames: int) -> float:
    """Floating-point operations of one call, counted on shapes; one sample, as they are proportional."""
    padded = -(-frames // network.frame_multiple) * network.frame_multiple
    module = copy.deepcopy(network.module).to("meta")
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 2, 256, padded, device="meta"), torch.empty(1, device="meta"))
    return float(samples * counter.get_total_flops())


def call_seconds(network: ScoreNetwork, samples: int, frames: int, device: torch.device, runs: int) -> float:
    """Of one call of the score."""
    state = torch.randn(samples, 256, frames, dtype=torch.complex64, device=device)
    times = torch.full((samples,), 0.5, device=device)
    with torch.inference_mode():
        return median_seconds(lambda: network.score(state, times), device, max(3, runs))


def matrix_peak(device: torch.device, precision: str, size: int) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=device).to(getattr(torch, precision))
    return 2 * size**3 / median_seconds(lambda: a @ a, device, 10)


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes/s of a copy, those read and those written."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device, 10)


def median_seconds(operation: Callable[[], object], device: torch.device, runs: int) -> float:
    """Of one call, after one to warm up."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    operation()
    walls = []
    for _ in range(runs):
        started = clock()
        operation()
        walls.append(clock() - started)
    return statistics.median(walls)


if __name__ == "__main__":
    main()
