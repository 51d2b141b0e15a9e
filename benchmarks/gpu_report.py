"""Speed and accuracy of networks, kernels and samplers on a GPU, as a Markdown page.

    python benchmarks/gpu_report.py -o gpu_measured.md
    python benchmarks/gpu_report.py -o gpu_measured.md --tables network convolutions    # a part of it
    python benchmarks/gpu_report.py --tiny --device cpu -o trial.md  # the same, in seconds, without a GPU

The samplers are run through `Enhancer`, as users do, in one block. Times are medians over runs, after those that
compile kernels and record CUDA graphs. Weights are random unless --checkpoint (speech) and --joint-checkpoint are
given: speed does not depend on them, the differences to float32 do. What takes longest comes last: a report that was
cut off is complete up to there.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import importlib
import importlib.resources
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from udse_fast import Enhancer, __version__
from udse_fast.backends.cuda_graphs import fastest_convolutions
from udse_fast.backends.dispatch import backends
from udse_fast.checkpoints.checkpoint import load_network, save_checkpoint
from udse_fast.commands.info import processor
from udse_fast.errors import first_line
from udse_fast.evaluation.metrics import si_sdr
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey
from udse_fast.kernels.convolution import Convolution, choice
from udse_fast.kernels.fused_layers import Norm, measured_sum, norm_film_silu, resample, residual_sum, tile_statistics
from udse_fast.kernels.nmf_is import nmf_update
from udse_fast.kernels.posterior_step import noise_posterior_guidance
from udse_fast.kernels.step import Step
from udse_fast.networks.ncsnpp import PUBLISHED_SIZES, NCSNpp
from udse_fast.networks.optimised import optimised_or_plain
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.posterior import posterior_sample
from udse_fast.sampling.requests import Answer, Prior, Request
from udse_fast.sampling.samplers import SAMPLERS, samplers_for
from udse_fast.sampling.sde import OUVE

TINY = {"nf": 8, "ch_mult": (1, 1, 1, 1)}
RATE = 16000
CALLS_BEFORE_REPLAYS = 2  # one as it is, one that is recorded
LAUNCHES = 20  # of a kernel in one CUDA graph
KERNELS_SHOWN = 25  # of a profile
STREAMS = (1, 8, 64)  # recordings at a time
TILES = (4096, 1024, 2048, 8192)  # the first is the one in use


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help="Markdown file")
    add("--tables", nargs="+", default=list(TABLES), choices=list(TABLES), help="(default: all)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--precision", help="default: bfloat16, float16 before sm_80, float32 on a CPU")
    named = samplers_for("prior")
    # the default first, EM, which runs as many passes as it has rounds, last
    add("--samplers", nargs="+", default=sorted(named, key=lambda name: (name == "udiffse") - (name == "diffuseen")))
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
        arguments.runs, arguments.check_seconds, arguments.check_steps = 2, 0.25, 2
    if torch.device(arguments.device).type == "cpu" and "TRITON_INTERPRET" not in os.environ:
        # triton reads it when it is imported, which torch does
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
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
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {
            joint: given or random_checkpoint(Path(folder) / f"{joint}.safetensors", joint, arguments.tiny)
            for joint, given in ((False, arguments.checkpoint), (True, arguments.joint_checkpoint))
        }
        bench = Bench(arguments, device, precision, peak, copied, checkpoints)
        for name in arguments.tables:
            yield from guarded(TABLES[name](bench))


@dataclass(frozen=True)
class Bench:
    """What all tables are made from."""

    arguments: argparse.Namespace
    device: torch.device
    precision: str
    peak: float
    """FLOP/s of a matrix product."""
    copied: float
    """Bytes/s of a copy."""
    checkpoints: dict[bool, Path]
    """Of NCSN++: whether it knows noise, too -> file."""

    @property
    def frames(self) -> int:
        """Of the spectrogram that a network is asked about."""
        return 64 if self.arguments.tiny else 1280


def guarded(table: Iterator[str]) -> Iterator[str]:
    """The lines of a table; what fails ends it, and the next one is made."""
    try:
        yield from table
    except Exception as error:
        yield f"\nFailed: {first_line(error)}"
        traceback.print_exc()
    yield ""


def sampler_table(bench: Bench) -> Iterator[str]:
    """One row for every sampler."""
    arguments, device, precision, peak = bench.arguments, bench.device, bench.precision, bench.peak
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
        try:
            checkpoint = bench.checkpoints[SAMPLERS[name].noise == "score"]
            yield sampler_row(name, arguments, checkpoint, device, precision, peak)
        except Exception as error:  # the others can still be measured
            yield f"| {name} | failed: {first_line(error)} | | | | | | |"
            traceback.print_exc()
    yield ""
    yield (
        "`network` is the share of the time that the calls of the network take when made alone. "
        "The last column is without TF32."
    )
    if device.type == "cpu":
        yield "Memory is that of the whole process."


def published_table(bench: Bench) -> Iterator[str]:
    """DiffUSEEN as published, run as its authors run it and as this package does."""
    arguments, device, audio = bench.arguments, bench.device, recording(bench.arguments.seconds, RATE)
    yield "## DiffUSEEN as published"
    yield ""
    yield "| how | precision | RTF | network calls a sample |"
    yield "| --- | --- | --- | --- |"

    def row(how: str, precision: str, eager: bool = False, **settings: Any) -> str:
        enhancer = Enhancer(
            bench.checkpoints[False], "diffuseen", arguments.steps, arguments.samples, str(device), precision,
            block_seconds=max(1.0, arguments.seconds + 0.1), **settings,
        )  # fmt: skip
        if eager:
            enhancer.model.network.graph = enhancer.model.network.plain
        seconds = median_seconds(lambda: enhancer.enhance(audio, RATE), device, arguments.runs, CALLS_BEFORE_REPLAYS)
        calls = arguments.steps * (1 if "reuse_estimate" in settings or "corrector_snr" in settings else 2)
        return f"| {how} | {precision} | {seconds / arguments.seconds:.3g} | {calls} |"

    with environment(UDSE_BACKEND="reference", UDSE_CUDA_GRAPHS="0"):
        yield row("eager PyTorch, operation by operation", "float32", eager=True)
        yield row("the same", bench.precision, eager=True)
    yield row("fused, one CUDA graph", bench.precision)
    yield row("the same, `reuse_estimate`", bench.precision, reuse_estimate=True)
    yield row("the same, no corrector", bench.precision, corrector_snr=0.0)


def amortised_table(bench: Bench) -> Iterator[str]:
    """The posterior network that comes with the package: one recording, and many at a time."""
    arguments, device = bench.arguments, bench.device
    yield "## The amortised sampler, with the network that comes with the package"
    yield ""
    yield "| precision | CUDA graphs | recordings at a time | RTF of all | streams in real time |"
    yield "| --- | --- | --- | --- | --- |"
    audio = recording(arguments.seconds, RATE)
    for precision in dict.fromkeys(("float32", bench.precision)):
        for graphs in ("1", "0"):
            with environment(UDSE_CUDA_GRAPHS=graphs):
                enhancer = Enhancer("posterior", device=str(device), precision=precision, block_seconds=2.0)
                for count in STREAMS[: 2 if arguments.tiny else None]:
                    seconds = median_seconds(
                        functools.partial(enhancer.enhance_many, [(audio, RATE)] * count, together=count),
                        device,
                        arguments.runs,
                        CALLS_BEFORE_REPLAYS,
                    )
                    rtf, on = seconds / arguments.seconds, "on" if graphs == "1" else "off"
                    yield f"| {precision} | {on} | {count} | {rtf:.3g} | {count / rtf:.0f} |"
    yield ""
    yield "Blocks of 2 s. Streams in real time: recordings over the real-time factor of all of them together."


def convolution_table(bench: Bench) -> Iterator[str]:
    """The convolutions of the published network, which are 94 % of its operations, by what cuDNN makes of them."""
    samples, device = bench.arguments.samples, bench.device
    yield "## Convolutions of 3x3, channels_last, as cuDNN runs them"
    yield ""
    yield "| channels | map | microseconds | TFLOP/s | of the matrix product | GB/s |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for channels in (96, 192):
        for bins in (256, 128, 64, 32):
            size = bins // 8 if bench.arguments.tiny else bins
            x, weight = (
                torch.randn(shape, device=device).to(getattr(torch, bench.precision), memory_format=torch.channels_last)
                for shape in ((samples, channels, size, size), (96, channels, 3, 3))
            )
            with torch.inference_mode(), fastest_convolutions(device):
                seconds = launch_seconds(
                    functools.partial(torch.nn.functional.conv2d, x, weight, padding=1), device, bench.arguments.runs
                )
            flop, moved = 2 * 9 * 96 * x.numel(), x.numel() * (1 + 96 / channels) * x.element_size()
            yield (
                f"| {channels} to 96 | {samples} x {size} x {size} | {1e6 * seconds:.4g} | {flop / seconds / 1e12:.3g} "
                f"| {flop / seconds / bench.peak:.0%} | {moved / seconds / 1e9:.4g} |"
            )


def own_convolution_table(bench: Bench) -> Iterator[str]:
    """Those of the published network with all that stands around them, by form: what the choice is made from."""
    samples, device, dtype = bench.arguments.samples, bench.device, getattr(torch, bench.precision)
    yield "## Convolutions with norm, SiLU, sum and statistics: own kernels and the library's layers"
    yield ""
    yield "| channels | map | form | microseconds | TFLOP/s | of the matrix product | difference |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for skip in (0, 96):
        for bins in (256, 128, 64, 32):
            size = bins // 8 if bench.arguments.tiny else bins
            x, other = (
                torch.randn(samples, 96, size, size, device=device).to(dtype, memory_format=torch.channels_last)
                for _ in range(2)
            )
            ones = x.new_ones(96 + skip)
            norm = Norm(x, ones, ones, 24 + skip // 12, skip=other if skip else None)
            statistics = [tile_statistics(y) if y is not None else None for y in (norm.x, norm.skip)]
            weight = torch.randn(96, 96 + skip, 3, 3, device=device).to(dtype, memory_format=torch.channels_last) / 30
            added = () if skip else (other,)
            job = Convolution(norm._replace(statistics=statistics), weight, ones[:96], added, None, 0.7, True)
            flop = 2 * weight.numel() * x.numel() / 96
            with torch.inference_mode(), fastest_convolutions(device):
                expected = choice.form("reference")(job)[0].float()
                for form in ("reference", *choice.forms(job)):
                    result = choice.form(form)(job)[0].float()
                    difference = float((result - expected).norm() / expected.norm())
                    seconds = launch_seconds(functools.partial(choice.form(form), job), device, bench.arguments.runs)
                    name = {"reference": "layers, cuDNN"}.get(form, form)
                    yield (
                        f"| {96 + skip} to 96 | {samples} x {size} x {size} | {name} | {1e6 * seconds:.4g} "
                        f"| {flop / seconds / 1e12:.3g} | {flop / seconds / bench.peak:.0%} | {difference:.1e} |"
                    )


def profile_table(bench: Bench) -> Iterator[str]:
    """Which kernels a call of the network spends its time in."""
    device, network = (
        bench.device,
        optimised_or_plain(load_network(bench.checkpoints[False], bench.device), bench.precision),
    )
    state = torch.randn(bench.arguments.samples, 256, bench.frames // 5, dtype=torch.complex64, device=device)
    times = torch.full((len(state),), 0.5, device=device)
    on_device = device.type == "cuda"
    with environment(UDSE_CUDA_GRAPHS="0"), torch.inference_mode():
        for _ in range(CALLS_BEFORE_REPLAYS):
            network.score(state, times)
        activities = [torch.profiler.ProfilerActivity.CUDA if on_device else torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            network.score(state, times)
            if on_device:
                torch.cuda.synchronize(device)
    events = profile.key_averages()
    used = {e.key: (e.self_device_time_total if on_device else e.self_cpu_time_total, e.count) for e in events}
    whole = sum(time for time, _ in used.values()) or 1
    yield f"## Where a call spends its time ({len(state)} x 256 x {state.shape[-1]}, no graph)"
    yield ""
    yield f"| {'kernel' if on_device else 'operation'} | microseconds | share | times |"
    yield "| --- | --- | --- | --- |"
    for name, (spent, count) in sorted(used.items(), key=lambda item: -item[1][0])[:KERNELS_SHOWN]:
        yield f"| `{name[:80].replace('|', '/')}` | {spent:.4g} | {spent / whole:.1%} | {count} |"
    yield f"| all {len(used)} kinds | {whole:.4g} | | {sum(count for _, count in used.values())} |"


def kernel_table(bench: Bench) -> Iterator[str]:
    """Memory traffic of the updates and of the fused layers, by backend."""
    arguments, device = bench.arguments, bench.device
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
            rows = kernels(arguments.samples, frames, device, 16 if arguments.tiny else 256)
            if device.type == "cuda":
                rows |= layers(arguments.samples, frames, device, bench.precision)
            with environment(UDSE_BACKEND=backend.name):
                for name, (operation, moved) in rows.items():
                    yield from guarded_row(name, backend.name, operation, moved, bench)
    yield ""
    if device.type == "cuda":
        yield "Calls follow each other in a CUDA graph. What fits into the L2 cache can be faster than a copy."
        yield ""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET"):
        yield "Triton runs in its interpreter here: a check, not a speed."
        yield ""


def tile_table(bench: Bench) -> Iterator[str]:
    """The Triton layers by how many numbers a program has at once: what to set `TILE` to."""
    yield "## Triton layers by the numbers of a program"
    yield ""
    if not any(backend.available and backend.name == "triton" for backend in backends()):
        yield "No Triton here."
        return
    triton_kernel = importlib.import_module("udse_fast.kernels.fused_layers.triton_kernel")
    tiles = TILES[: 1 if bench.arguments.tiny else None]
    yield f"| operation | {' | '.join(f'{tile}, GB/s' for tile in tiles)} |"
    yield f"| --- |{' --- |' * len(tiles)}"
    rates: dict[str, list[str]] = {}
    for tile in tiles:
        with mock.patch.object(triton_kernel, "TILE", tile), environment(UDSE_BACKEND="triton"):
            for name, (operation, moved) in layers(1, bench.frames, bench.device, bench.precision).items():
                seconds = launch_seconds(operation, bench.device, bench.arguments.runs)
                rates.setdefault(name, []).append(f"{moved / seconds / 1e9:.4g}")
    for name, row in rates.items():
        yield f"| {name} | {' | '.join(row)} |"


def guarded_row(name: str, backend: str, operation: Callable[[], object], moved: float, bench: Bench) -> Iterator[str]:
    """Of the table of kernels; one that fails leaves the others."""
    try:
        seconds = launch_seconds(operation, bench.device, bench.arguments.runs)
        rate = moved / seconds
        yield f"| {name} | {backend} | {1e6 * seconds:.4g} | {rate / 1e9:.4g} | {rate / bench.copied:.0%} |"
    except Exception as error:
        yield f"| {name} | {backend} | failed: {first_line(error)} | | |"
        traceback.print_exc()


def network_table(bench: Bench) -> Iterator[str]:
    """A call of the network, plain and fused."""
    arguments, device, precision, peak = bench.arguments, bench.device, bench.precision, bench.peak
    checkpoint, frames = bench.checkpoints[False], bench.frames
    yield "## The network"
    yield ""
    yield "| form | milliseconds a call | TFLOP/s | of the peak |"
    yield "| --- | --- | --- | --- |"
    flop = network_flop(load_network(checkpoint), arguments.samples, frames)
    replayed = "fused, replayed from CUDA graphs" if device.type == "cuda" else "fused"
    for form, fused, convolutions in (
        ("plain", False, "auto"),
        (f"{replayed}, cuDNN's convolutions", True, "cudnn"),
        (f"{replayed}, own convolutions", True, "own"),
        (f"{replayed}, the faster of both for each shape", True, "auto"),
    ):
        with environment(UDSE_CONVOLUTION=convolutions):
            network = load_network(checkpoint, device)
            network = optimised_or_plain(network, precision) if fused else network.to(precision=precision)
            seconds = call_seconds(network, arguments.samples, frames, device, arguments.runs)
        yield f"| {form} | {1000 * seconds:.3g} | {flop / seconds / 1e12:.3g} | {flop / seconds / peak:.0%} |"
    yield ""


def sampler_row(
    name: str, arguments: argparse.Namespace, checkpoint: Path, device: torch.device, precision: str, peak: float
) -> str:
    """One row of the table of samplers."""

    def enhancer(on: torch.device, in_precision: str, steps: int) -> Enhancer:
        return Enhancer(
            checkpoint, name, steps, arguments.samples, str(on), in_precision,
            em_rounds=arguments.em_rounds, block_seconds=max(1.0, arguments.seconds + 0.1),
        )  # fmt: skip

    audio = recording(arguments.seconds, RATE)
    forget(device)
    fast = enhancer(device, precision, arguments.steps)
    before = CALLS_BEFORE_REPLAYS if device.type == "cuda" else 0
    seconds = median_seconds(lambda: fast.enhance(audio, RATE), device, arguments.runs, before)
    memory = peak_memory(device)
    frames = fast.spectral.stft(torch.zeros(len(audio), device=device)).shape[-1]
    calls = network_calls(name, arguments)
    network_seconds = sum(
        count * call_seconds(fast.network, batch, frames, device, arguments.runs) for batch, count in calls.items()
    )
    counted = load_network(checkpoint)
    flop = sum(count * network_flop(counted, batch, frames) for batch, count in calls.items())

    audio = recording(arguments.check_seconds, RATE)
    steps = arguments.check_steps
    expected = enhancer(torch.device("cpu"), "float32", steps).enhance(audio, RATE)
    rounded = enhancer(device, precision, steps).enhance(audio, RATE)
    with without_tf32():
        exact = enhancer(device, "float32", steps).enhance(audio, RATE)
    return (
        f"| {name} | {seconds / arguments.seconds:.3g} | {network_seconds / seconds:.0%} "
        f"| {flop / network_seconds / 1e12:.3g} | {flop / network_seconds / peak:.0%} | {memory:.2f} "
        f"| {si_sdr(expected, rounded):.1f} | {np.abs(exact - expected).max() / np.abs(expected).max():.1e} |"
    )


class CountedPrior(Prior):
    """In the place of a network for both sources: how many samples each of its calls has."""

    def __init__(self) -> None:
        self.calls = Counter[int]()

    def batch_key(self, source: str) -> int:
        """One network for all sources."""
        return 0

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Of a standard normal distribution at every time."""
        self.calls[sum(len(request.state) for request in requests)] += 1
        return [Answer(-request.state) for request in requests]


def network_calls(name: str, arguments: argparse.Namespace) -> Counter[int]:
    """Samples of a network call -> how many such calls a pass has, counted on a spectrogram of one bin."""
    prior = CountedPrior()
    posterior_sample(
        torch.ones(1, 1, dtype=torch.complex64),
        prior,
        name,
        steps=arguments.steps,
        samples=arguments.samples,
        em_rounds=arguments.em_rounds,
    )
    return prior.calls


def forget(device: torch.device) -> None:
    """Give back what earlier measurements hold, and start anew with the peak of memory."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # after a capture that failed, the allocator refuses
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def kernels(
    samples: int, frames: int, device: torch.device, bins: int, rank: int = 4
) -> dict[str, tuple[Callable[[], object], float]]:
    """Updates of a step, and the bytes that each has to move."""

    def cplx(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.complex64, device=device)

    state, score, mixture = cplx(samples, bins, frames), cplx(samples, bins, frames), cplx(bins, frames)
    W, H = torch.rand(bins, rank, device=device), torch.rand(rank, frames, device=device)
    power = mixture.abs().square()
    c = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30)
    key = NoiseKey(0, "predictor_speech")
    plane = bins * frames
    return {
        # reads s, S and x, writes s and P
        "diffuseen update": (
            lambda: noise_posterior_guidance(Step(state, score, c, key, mixture, (W, H))),
            plane * (samples * 3 * 8 + 8 + 4),
        ),
        # reads P twice
        "nmf iteration": (lambda: nmf_update(power, W, H), plane * 2 * 4),
    }


def layers(
    samples: int, frames: int, device: torch.device, precision: str
) -> dict[str, tuple[Callable[[], object], float]]:
    """The fused layers on a map of the first level of the published network, and the bytes that each has to move."""
    shape = samples, 96, 256 if device.type == "cuda" else 16, frames // 16 * 16
    x = torch.randn(shape, device=device).to(getattr(torch, precision), memory_format=torch.channels_last)
    weight, bias = x.new_ones(96), x.new_zeros(96)
    size = x.numel() * x.element_size()
    known = tile_statistics(x), None
    return {
        # statistics and result read x once each
        "norm and SiLU": (lambda: norm_film_silu(Norm(x, weight, bias, 24)), 3 * size),
        "norm and SiLU, statistics known": (
            lambda: norm_film_silu(Norm(x, weight, bias, 24, statistics=known)),
            2 * size,
        ),
        "residual sum": (lambda: residual_sum(x, x, bias, 0.7), 3 * size),
        "residual sum and statistics": (lambda: measured_sum(x, x, bias, 0.7), 3 * size),
        "FIR down": (lambda: resample(x, False), 1.25 * size),
        "FIR up": (lambda: resample(x, True), 5 * size),
    }


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions of float32 in float32: cuDNN's default keeps 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def machine(device: torch.device) -> Iterator[str]:
    """What was measured on what."""
    yield f"- {platform.system()} {platform.machine()}, {processor()}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
        driver = (found.stdout.strip() if found else "") or "unknown"
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


def random_checkpoint(path: Path, joint: bool, tiny: bool) -> Path:
    """A network with random weights that all matter."""
    architecture = TINY | {"joint": joint} if tiny else PUBLISHED_SIZES["ncsnpp-5m-joint" if joint else "ncsnpp-5m"]
    torch.manual_seed(0)
    module = NCSNpp(**architecture)
    for parameter in module.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    stft = {"n_fft": 510, "hop_length": 128, "window": "hann", "sample_rate": RATE}
    config = {"architecture": {"name": "ncsnpp", **architecture}, "sde": OUVE().config, "stft": stft}
    save_checkpoint(path, module.state_dict(), config)
    return path


def recording(seconds: float, rate: int) -> np.ndarray:
    """The noisy example, repeated."""
    example = importlib.resources.files("udse_fast") / "examples" / "noisy.flac"
    with importlib.resources.as_file(example) as path:
        audio, _ = soundfile.read(path, dtype="float32")
    return np.resize(audio, max(1, round(seconds * rate)))


def network_flop(network: ScoreNetwork, samples: int, frames: int) -> float:
    """Floating-point operations of one call, counted on shapes; one sample, as they are proportional."""
    padded = -(-frames // network.frame_multiple) * network.frame_multiple
    graph = copy.deepcopy(network.plain).to("meta")
    with FlopCounterMode(display=False) as counter:
        graph(*(x.to("meta") for x in network.module.example(1, 256, padded)))
    return float(samples * counter.get_total_flops())


def call_seconds(network: ScoreNetwork, samples: int, frames: int, device: torch.device, runs: int) -> float:
    """Of one call of the score."""
    state = torch.randn(samples, 256, frames, dtype=torch.complex64, device=device)
    times = torch.full((samples,), 0.5, device=device)
    with torch.inference_mode():
        return median_seconds(lambda: network.score(state, times), device, runs, CALLS_BEFORE_REPLAYS)


def matrix_peak(device: torch.device, precision: str, size: int) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=device).to(getattr(torch, precision))
    return 2 * size**3 / median_seconds(lambda: a @ a, device, 10)


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes/s of a copy, those read and those written."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)  # zeros are faster to move than data
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device, 10)


def launch_seconds(operation: Callable[[], object], device: torch.device, runs: int) -> float:
    """Of one call on the device alone: to launch a kernel from Python takes longer than most of them run."""
    if device.type != "cuda":
        return median_seconds(operation, device, 1)
    operation()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            operation()
    return median_seconds(graph.replay, device, runs) / LAUNCHES


def median_seconds(operation: Callable[[], object], device: torch.device, runs: int, before: int = 1) -> float:
    """Of one call, after some that do not count."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(before):
        operation()
    walls = []
    for _ in range(runs):
        started = clock()
        operation()
        walls.append(clock() - started)
    return statistics.median(walls)


TABLES: dict[str, Callable[[Bench], Iterator[str]]] = {
    "network": network_table,
    "convolutions": convolution_table,
    "own_convolutions": own_convolution_table,
    "profile": profile_table,
    "kernels": kernel_table,
    "tiles": tile_table,
    "amortised": amortised_table,
    "published": published_table,
    "samplers": sampler_table,
}
"""What takes longest comes last."""

if __name__ == "__main__":
    main()
