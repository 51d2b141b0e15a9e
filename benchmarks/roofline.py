"""What a GPU has to move and to compute in a network call, counted, and the speed that follows: a prediction.

    python benchmarks/roofline.py -o benchmarks/results/gpu.md
    python benchmarks/roofline.py -o benchmarks/results/gpu.md --measured gpu_measured.md gpu_samplers.md

Every operation of a call is counted once on tensors without numbers: the bytes that it reads and writes, its
floating-point operations, its launches. It takes the longer of bytes / bandwidth and operations / rate, every launch a
microsecond more (in a CUDA graph). No cache, no overlap, no clock that falls under load.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.kernels import fused_layers
from udse_fast.kernels.convolution import Convolution
from udse_fast.kernels.convolution.cuda import BINS as TILE_BINS
from udse_fast.kernels.convolution.cuda import FRAMES as TILE_FRAMES
from udse_fast.kernels.fused_layers import Norm
from udse_fast.kernels.fused_layers.reference import tile_length
from udse_fast.networks import optimised
from udse_fast.networks.ncsnpp import PUBLISHED_SIZES, NCSNpp
from udse_fast.networks.optimised import fused_ncsnpp

META = torch.device("meta")
SAMPLES, BINS, FRAMES, HOP, RATE = 4, 256, 256, 128, 16000
SECONDS = FRAMES * HOP / RATE
LAUNCH = 1e-6
NOT_LAUNCHED = "empty empty_like new_empty empty_strided new_empty_strided lift_fresh _unsafe_view _reshape_alias"


class Device(NamedTuple):
    """What a device holds up over a call."""

    name: str
    case: str
    flops: float
    bandwidth: float


DEVICES = (
    Device("T4", "data sheet", 65e12, 320e9),
    Device("T4", "good", 28e12, 240e9),
    Device("T4", "likely", 22e12, 210e9),
    Device("H100 SXM", "data sheet", 989e12, 3.35e12),
    Device("H100 SXM", "good", 450e12, 2.5e12),
    Device("H100 SXM", "likely", 300e12, 2.3e12),
    Device("H200", "good", 450e12, 3.6e12),
)
"""Data sheets: NVIDIA's, dense, 16 bits. The others: what convolutions of 96 channels and copies are said to reach."""


@dataclass
class Part:
    """Of a call."""

    bytes: float = 0
    flop: float = 0
    launches: int = 0


class Operation(NamedTuple):
    """One launch, or a few that are one operation of the network."""

    part: str
    bytes: float
    flop: float
    launches: int


@dataclass
class Call:
    """What was counted."""

    operations: list[Operation] = field(default_factory=list)

    def add(self, part: str, moved: float, flop: float = 0, launches: int = 1) -> None:
        """One more operation."""
        self.operations.append(Operation(part, moved, flop, launches))

    def parts(self) -> dict[str, Part]:
        """Sums by the kind of operation, the largest in bytes first."""
        parts: dict[str, Part] = {}
        for operation in self.operations:
            part = parts.setdefault(operation.part, Part())
            part.bytes += operation.bytes
            part.flop += operation.flop
            part.launches += operation.launches
        return dict(sorted(parts.items(), key=lambda item: -item[1].bytes))

    def seconds(self, device: Device) -> float:
        """On a device."""
        return sum(
            max(o.bytes / device.bandwidth, o.flop / device.flops) + LAUNCH * o.launches for o in self.operations
        )


def size(*tensors: torch.Tensor | None) -> float:
    """Bytes."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def a_map(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Channels_last."""
    return torch.empty(shape, dtype=like.dtype, device=META, memory_format=torch.channels_last)


class Counting(TorchDispatchMode):
    """Counts torch's own operations."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = function(*args, **kwargs or {}), function.overloadpacket.__name__
        if function.is_view or name in NOT_LAUNCHED.split():
            return result
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        flop = 0
        if name == "addmm_":  # which torch's own counter does not know
            flop = 2 * args[1].numel() * args[2].shape[1]
        elif function.overloadpacket in flop_registry:
            flop = flop_registry[function.overloadpacket](*args, **kwargs or {}, out_val=result)
        if name == "convolution":
            result = result.contiguous(memory_format=torch.channels_last)
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.call.add(self._part(name, args), size(*given, *made), flop)
        return result

    @staticmethod
    def _part(name: str, args: Any) -> str:
        if name == "convolution":
            weight = args[1]
            return "3x3 convolutions" if min(weight.shape[:2]) > 8 and weight.shape[-1] > 1 else "thin convolutions"
        if name in ("mm", "addmm", "addmm_") and max(x.shape[0] for x in args[:2]) > 1000:
            return "1x1 shortcuts and attention"
        return "the rest"


def counted_layers(call: Call) -> SimpleNamespace:
    """The fused layers as the CUDA kernels run them, without numbers."""

    def statistics(x: torch.Tensor) -> torch.Tensor:
        tiles = math.ceil(x.shape[2] * x.shape[3] / tile_length(x.shape[2] * x.shape[3]))
        return x.new_empty((3, len(x), tiles, x.shape[1]), dtype=torch.float32)

    def tile_statistics(x: torch.Tensor) -> torch.Tensor:
        call.add("statistics alone", size(x))
        return statistics(x)

    def norm_film_silu(norm: Norm) -> torch.Tensor:
        for x, known in zip((norm.x, norm.skip), norm.statistics, strict=True):
            if x is not None and known is None:
                call.add("statistics alone", size(x))
        channels = norm.weight.numel()
        out = a_map(norm.x, (len(norm.x), channels, *norm.x.shape[2:]))
        call.add("norm and SiLU", size(norm.x, norm.skip, out), launches=2)
        return out

    def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
        call.add("residual sum and statistics", size(h, x, h))
        return torch.empty_like(h)

    def measured_sum(
        h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return residual_sum(h, x, bias, factor), statistics(h)

    def resample(x: torch.Tensor, up: bool) -> torch.Tensor:
        B, C, F, T = x.shape
        out = a_map(x, (B, C, 2 * F, 2 * T) if up else (B, C, F // 2, T // 2))
        call.add("FIR up and down", size(x, out))
        return out

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        call.add("1x1 shortcuts and attention", size(query, key, value, value), 4 * key.shape[-2] * query.numel())
        return torch.empty_like(query)

    return SimpleNamespace(
        attention=attention,
        tile_statistics=tile_statistics,
        norm_film_silu=norm_film_silu,
        residual_sum=residual_sum,
        measured_sum=measured_sum,
        resample=resample,
    )


class OwnConvolutions:
    """Those of kernels/convolution, without numbers.

    Args:
        norm: the norm of the input is a part of it, as in the CUDA form; else a pass of its own, as in Triton's.
    """

    def __init__(self, call: Call, layers: SimpleNamespace, norm: bool) -> None:
        self.call, self.layers, self.norm = call, layers, norm

    def __call__(self, job: Convolution) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, launches = job.input, 1
        maps: list[torch.Tensor | None]
        if isinstance(x, Norm) and not self.norm:
            x = self.layers.norm_film_silu(x)
        if isinstance(x, Norm):
            for each, known in zip((x.x, x.skip), x.statistics, strict=True):
                if each is not None and known is None:
                    self.call.add("statistics alone", size(each))
            maps, launches = [x.x, x.skip, *x.statistics], 2
        else:
            maps = [x]
        like = maps[0]
        assert like is not None
        out = a_map(like, (len(like), len(job.weight), *like.shape[2:]))
        tiles = math.ceil(like.shape[2] / TILE_BINS) * math.ceil(like.shape[3] / TILE_FRAMES)
        statistics = None
        if job.measured:
            statistics = like.new_empty((3, len(like), tiles, len(job.weight)), dtype=torch.float32)
        positions = out.numel() // len(job.weight)
        flop = 2 * positions * (job.weight.numel() + (0 if job.shortcut is None else job.shortcut.numel()))
        moved = size(*maps, *job.added, job.weight, job.shortcut, out, statistics)
        self.call.add("3x3 convolutions, all in one", moved, flop, launches)
        return out, statistics


def ncsnpp_call(samples: int, own: bool = False, norm: bool = True) -> Call:
    """Of the published network, fused, in 16 bits; with own convolutions (see `OwnConvolutions`) or cuDNN's."""
    network = fused_ncsnpp(NCSNpp(**PUBLISHED_SIZES["ncsnpp-5m"])).bfloat16().to(META)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    call = Call()
    state = torch.empty(samples, 2, BINS, FRAMES, device=META)
    layers = counted_layers(call)
    with (
        mock.patch.object(fused_layers, "_module", return_value=layers),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", layers.attention),
        mock.patch.object(
            optimised, "convolution", OwnConvolutions(call, layers, norm) if own else optimised.convolution
        ),
        torch.no_grad(),
        Counting(call),
    ):
        network.predict_noise(state, torch.empty(samples, device=META))
    return call


def posterior_call(recordings: int) -> Call:
    """Of the network of the amortised sampler in bfloat16, operation by operation, on blocks of about 2 s."""
    network = load_network("posterior").to(precision="bfloat16")
    frames = round(2.0 * RATE / network.config["stft"]["hop_length"])
    module, call = network.module.to(META), Call()
    example = [x.to(META) for x in module.example(recordings, BINS, frames)]
    with torch.no_grad(), Counting(call):
        module.say(*example[2:4], None, None)
    return call


def page(measured: list[Path]) -> Iterator[str]:
    """The lines."""
    yield "# Speed on GPUs"
    yield ""
    yield (
        "**No number here was measured on a GPU**, unless it stands under *Measured*: the package has not run on one "
        "yet. The others are predicted by `benchmarks/roofline.py`, which counts what a call has to move and to "
        "compute: every operation takes the longer of bytes / bandwidth and operations / rate, each launch 1 us more."
    )
    yield ""
    call = ncsnpp_call(SAMPLES)
    sizes = f"{SAMPLES} samples of {BINS} x {FRAMES} ({SECONDS:.3g} s)"
    yield f"## A call of the published network: {sizes}, 16 bits, fused"
    yield ""
    yield "Counted on the code, so these are facts of the package, not of a device."
    yield ""
    yield from table_of_parts(call)
    yield ""
    own = ncsnpp_call(SAMPLES, own=True)
    yield from own_convolutions(own)
    yield "## Predicted: DiffUSEEN as published, 30 steps, 4 samples, all in one CUDA graph"
    yield ""
    yield (
        "| device | assumed, TFLOP/s and GB/s | convolutions | ms a call | RTF, 60 calls "
        "| RTF, `reuse_estimate` (30 calls) |"
    )
    yield "| --- | --- | --- | --- | --- | --- |"
    for device in DEVICES:
        for form, counted in (("cuDNN's", call), ("own", own)):
            seconds = counted.seconds(device)
            rates = f"{device.case}: {device.flops / 1e12:.3g}, {device.bandwidth / 1e9:.4g}"
            rtf = [f"{count * seconds / SECONDS:.3g} (predicted)" for count in (60, 30)]
            yield f"| {device.name} | {rates} | {form} | {1000 * seconds:.3g} (predicted) | {rtf[0]} | {rtf[1]} |"
    yield ""
    yield (
        "Own convolutions are taken to reach the rate of cuDNN's, which only a device can show. Where they do not, "
        "cuDNN's are used."
    )
    yield ""
    yield (
        "Updates, noise and noise model are left out: together they move less than 1 % of what the network does. The "
        "authors report RTF 1.62 to 32.5 on a T4."
    )
    yield ""
    yield "## Predicted: the amortised sampler, 2 calls for a block of 2 s"
    yield ""
    yield "| device | recordings at a time | launches a call | MB a call | RTF of all | streams in real time |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for count in (1, 8, 64):
        call = posterior_call(count)
        launches, moved = (sum(o[place] for o in call.operations) for place in (3, 1))
        for device in (DEVICES[1], DEVICES[4]):
            rtf = 2 * call.seconds(device) / 2.0
            yield (
                f"| {device.name}, {device.case} | {count} | {launches} | {moved / 1e6:.4g} "
                f"| {rtf:.2g} (predicted) | {count / rtf:.2g} (predicted) |"
            )
    yield ""
    yield "Transforms, noise model and what a server does beside the network are not in it."
    yield ""
    yield "## Measured"
    yield ""
    if not measured:
        yield "Nothing yet. On a GPU: `OUT=results benchmarks/gpu_session.sh`, then this script with `--measured`."
    for file in measured:
        yield from (f"#{line}" if line.startswith("#") else line for line in file.read_text("utf-8").splitlines())


class Compiled(NamedTuple):
    """What `nvcc -Xptxas -v` (CUDA 13.0) says of the float16 form in kernels/convolution/convolution.cu."""

    architecture: str
    columns: int
    """Channels of the output that a block makes."""
    registers: int
    shared: int
    """Bytes of shared memory."""
    spilled: int = 0
    """Bytes of registers that are kept in memory."""

    @property
    def blocks(self) -> int:
        """Of 128 threads, on a multiprocessor with 65,536 registers, which are given out in eights."""
        return 65536 // (128 * 8 * math.ceil(self.registers / 8))


COMPILED = (
    Compiled("sm_75", 32, 96, 12032),
    Compiled("sm_75", 64, 138, 12544),
    Compiled("sm_75", 96, 184, 13056),
    Compiled("sm_80", 32, 100, 12032),
    Compiled("sm_80", 64, 140, 12544),
    Compiled("sm_80", 96, 188, 13056),
    Compiled("sm_86", 32, 100, 12032),
    Compiled("sm_86", 64, 140, 12544),
    Compiled("sm_86", 96, 164, 13056),
    Compiled("sm_90", 32, 104, 12032),
    Compiled("sm_90", 64, 152, 12544),
    Compiled("sm_90", 96, 168, 13056),
)


def own_convolutions(call: Call) -> Iterator[str]:
    """A call with them, and what the compiler makes of them."""
    yield "## The same call with own convolutions"
    yield ""
    yield (
        "Norm, SiLU, convolution, bias, sum, shortcut and the next norm's statistics in one kernel (CUDA). It is "
        "compiled, and executed in an emulation of the instructions; it has not run on a device yet. Each shape is "
        "measured at its first call and cuDNN's is kept where that is faster."
    )
    yield ""
    yield from table_of_parts(call)
    yield ""
    moved = sum(operation.bytes for operation in ncsnpp_call(SAMPLES, own=True, norm=False).operations)
    yield (
        f"In Triton, where the norm stays a pass of its own, a call moves {moved / 1e9:.3g} GB: a Triton program has "
        "no rectangle in shared memory that the 9 taps share, and would activate every number 9 times."
    )
    yield ""
    yield "What the compiler makes of the CUDA form, float16 (compiled, `nvcc -Xptxas -v`, CUDA 13.0):"
    yield ""
    yield "| GPU | columns of a block | registers a thread | spilled, bytes | shared memory, bytes | blocks at a time |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for c in COMPILED:
        yield f"| {c.architecture} | {c.columns} | {c.registers} | {c.spilled} | {c.shared} | {c.blocks} |"
    yield ""
    yield "128 threads a block. Blocks at a time: those that the 65,536 registers of a multiprocessor suffice for."
    yield ""


def table_of_parts(call: Call) -> Iterator[str]:
    """What a call consists of."""
    parts = call.parts()
    moved, flop = (sum(getattr(part, name) for part in parts.values()) for name in ("bytes", "flop"))
    yield "| part | GB | share | GFLOP | share | launches |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, part in parts.items():
        yield (
            f"| {name} | {part.bytes / 1e9:.3g} | {part.bytes / moved:.0%} | {part.flop / 1e9:.4g} "
            f"| {part.flop / flop:.0%} | {part.launches} |"
        )
    launches = sum(part.launches for part in parts.values())
    yield f"| **all** | {moved / 1e9:.3g} | | {flop / 1e9:.4g} | | {launches} |"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown file")
    parser.add_argument("--measured", type=Path, nargs="*", default=[], help="pages of gpu_report.py to put in")
    arguments = parser.parse_args()
    text = "\n".join(page(arguments.measured)) + "\n"
    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
