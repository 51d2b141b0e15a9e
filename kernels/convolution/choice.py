"""Which form of a convolution runs: on a GPU each shape is measured once, own kernels against the library's layers."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import warnings
from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch

from udse_fast.backends.dispatch import available, implementation, wanted
from udse_fast.errors import UdseError, first_line
from udse_fast.kernels.convolution import reference
from udse_fast.kernels.convolution.reference import Convolution, Convolved
from udse_fast.kernels.fused_layers import Norm
from udse_fast.kernels.fused_layers.reference import moments

Form: TypeAlias = Callable[[Convolution], Convolved]

PACKAGE = __name__.rpartition(".")[0]
CHOICES = "own", "cudnn", "auto"
OWN = "cuda", "triton"
"""The first is the one that does all in one kernel."""
WORTH = 0.98
"""Of the library's time, below which another form is taken: less may be chance."""
AGREEMENT = 0.05
"""Relative difference of two forms in 16 bits, which round in other places; a few thousandths are usual."""
RUNS = 5
HEAD_START = 10_000_000
"""Clocks that the GPU waits before what is measured, so that launches are not."""

_chosen: dict[Hashable, str] = {}
"""Of this process: a shape -> the form that was fastest."""
_broken = set[str]()
"""Forms that failed or gave something else."""
_measuring = threading.Lock()


def convolution(job: Convolution) -> Convolved:
    """Norm, SiLU, convolution, sum and statistics: see `Convolution`.

    UDSE_CONVOLUTION=own takes the own kernels wherever they can run, cudnn never, auto (the default) where they were
    measured to be faster. A shape is measured at its first call, when cuDNN measures its algorithms, too.

    Raises:
        UdseError: UDSE_CONVOLUTION is something else.
    """
    choice = switch()
    names = [] if choice == "cudnn" else forms(job)
    if not names:
        return reference.convolution(job)
    if choice == "own":
        return form(names[0])(job)
    key = _key(job)
    if key not in _chosen and _may_measure():
        with _measuring:
            if key not in _chosen:
                expected = reference.convolution(job)
                if not expected[0].isfinite().all():  # a state that diverged says nothing about kernels
                    return expected
                _chosen[key] = _fastest(job, names, expected)
    name = _chosen.get(key, "reference")
    return form("reference" if name in _broken else name)(job)


def switch() -> str:
    """The value of UDSE_CONVOLUTION, which nothing else reads.

    Raises:
        UdseError: there is no such choice.
    """
    value = os.environ.get("UDSE_CONVOLUTION") or "auto"
    if value not in CHOICES:
        raise UdseError(f"UDSE_CONVOLUTION must be one of {', '.join(CHOICES)}; got {value!r}")
    return value


def form(name: str) -> Form:
    form: Form = implementation(PACKAGE, name).convolution
    return form


def _map(job: Convolution) -> torch.Tensor:
    return job.input.x if isinstance(job.input, Norm) else job.input


def forms(job: Convolution) -> list[str]:
    """The own ones that take it."""
    x, norm = _map(job), job.input
    if x.device.type != "cuda" or x.dtype not in (torch.float16, torch.bfloat16):
        return []
    if isinstance(norm, Norm):
        per_frame = any(c is not None and c.shape[-1] > 1 for c in (norm.before, norm.scale, norm.shift))
        if per_frame or not norm.activate:
            return []
    if x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) < (8, 0):
        return []
    return [name for name in OWN if name not in _broken and wanted(name) and available(name, x.device)]


def _key(job: Convolution) -> Hashable:
    """What the time depends on."""
    x, norm = _map(job), job.input
    skip = None if not isinstance(norm, Norm) or norm.skip is None else norm.skip.shape[1]
    added = tuple(y.shape[1] for y in job.added), job.shortcut is None
    return x.device, x.dtype, x.shape, skip, isinstance(norm, Norm), job.weight.shape, added, job.measured


def _may_measure() -> bool:
    """Calls come again, and are not recorded."""
    return torch.backends.cudnn.benchmark and not torch.cuda.is_current_stream_capturing()


def _fastest(job: Convolution, names: list[str], expected: Convolved) -> str:
    """The name of the form that takes the least time, and gives what the library's layers give."""
    best, name = milliseconds(reference.convolution, job), "reference"
    for each in names:
        try:
            _compare(form(each)(job), expected)
            time = milliseconds(form(each), job)
        except Exception as error:  # whatever the reason, the library does the same
            _broken.add(each)
            warnings.warn(
                f"the convolution in {each} is not used from now on, which changes nothing else: {first_line(error)}",
                RuntimeWarning,
                stacklevel=4,
            )
            continue
        if time < best * WORTH:
            best, name = time, each
    return name


def _compare(result: Convolved, expected: Convolved) -> None:
    """Nothing, or an error.

    Raises:
        UdseError: the maps differ, or the statistics are not those of the map.
    """
    (out, measured), (other, _) = result, expected
    difference = float((out.float() - other.float()).norm() / other.float().norm().clamp_min(1e-20))
    if measured is not None:
        values = out.float().flatten(2)
        variance, mean = torch.var_mean(values, 2, correction=0)
        of_tiles = moments(measured)
        deviation = variance.sqrt() + 1e-3
        difference = max(difference, float(((of_tiles[0] - mean) / deviation).abs().max()))
        difference = max(difference, float(((of_tiles[1] - variance) / deviation.square()).abs().max()))
    if not difference < AGREEMENT:
        raise UdseError(f"it differs from the other layers by {difference:.1e}")


def milliseconds(form: Form, job: Convolution) -> float:
    """Of a form on the GPU, launched one after the other."""
    with torch.cuda.device(_map(job).device):
        form(job)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(RUNS + 1)]
        torch.cuda._sleep(HEAD_START)
        events[0].record()
        for event in events[1:]:
            form(job)
            event.record()
        events[-1].synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))
