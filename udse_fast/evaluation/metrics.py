"""Objective measures of enhanced speech, with the conventions of the diffusion enhancement papers.

All signals are (L,) float arrays at 16 kHz. A measure that a signal leaves undefined (silence, less than a
quarter of a second) is NaN. PESQ, ESTOI and DNSMOS come from packages: `pip install udse-fast[evaluate]`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import subprocess
import sys
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udse_fast.errors import UdseError

Signal = NDArray[np.floating[Any]]

SAMPLE_RATE = 16000
FAMILIES = {
    "si": ("si_sdr", "si_sir", "si_sar"),
    "pesq": ("pesq_wb", "pesq_nb", "pesq_nb_raw"),
    "estoi": ("estoi",),
    "dnsmos": ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl"),
}
"""Names of the values that are computed together."""
METRICS = tuple(name for names in FAMILIES.values() for name in names)

# P.862.1: MOS-LQO = LOW + SPAN / (1 + exp(OFFSET - SLOPE raw))
P862_1_LOW, P862_1_SPAN, P862_1_SLOPE, P862_1_OFFSET = 0.999, 4.0, 1.4945, 4.6607

# The P.862 C code overruns its table of 50 utterances (0.2 s and 0.2 s of pause at least) on long signals.
PESQ_SAFE_SAMPLES = 20 * SAMPLE_RATE

DNSMOS_WINDOW_SAMPLES = 144160  # 9.01 s
# DNS Challenge, P.835 model (not the personalised one): polynomials of network output; SIG, BAK, OVRL
DNSMOS_MAPPINGS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


def require(package: str) -> ModuleType:
    """Import an optional package, or raise UdseError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        message = f"evaluation needs the package {package!r} ({error}): pip install udse-fast[evaluate]"
        raise UdseError(message) from None


def si_sdr(reference: Signal, estimate: Signal) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, without mean removal (Le Roux et al. 2019, eq. 3-5).

    Args: reference, estimate: (L,) float. inf for a perfect estimate, NaN for a silent reference or estimate.
    """
    reference, estimate = _pair(reference, estimate)
    target = _projection(estimate, reference)
    return _decibels(target, estimate - target)


def si_sir_sar(speech: Signal, noise: Signal, estimate: Signal) -> tuple[float, float, float]:
    """SI-SDR, SI-SIR and SI-SAR in dB.

    estimate = target + interference + artefacts: its projection on `speech`, that on `noise`, the rest.
    Each projection is taken alone, as in the papers' tables, where a mixture therefore has a finite SI-SAR
    (that of the chance correlation of speech and noise). Joint projection on both (Le Roux et al. 2019) is
    the same for orthogonal sources.

    Args: speech, noise, estimate: (L,) float; the mixture is speech + noise.
    """
    speech, estimate = _pair(speech, estimate)
    noise, _ = _pair(noise, estimate)
    target, interference = _projection(estimate, speech), _projection(estimate, noise)
    residual = estimate - target
    return (
        _decibels(target, residual),
        _decibels(target, interference),
        _decibels(target, residual - interference),
    )


def pesq_wb(reference: Signal, estimate: Signal) -> float:
    """Wide-band PESQ, MOS-LQO of P.862.2: 1.04 to 4.64.

    Args: reference, estimate: (L,) float at 16 kHz; meant for up to 30 s, NaN where the code fails on more.
    """
    return _pesq(reference, estimate, "wb")


def pesq_nb(reference: Signal, estimate: Signal) -> float:
    """Narrow-band PESQ, MOS-LQO of P.862.1: 1.02 to 4.55. Args as `pesq_wb`."""
    return _pesq(reference, estimate, "nb")


def pesq_nb_raw(reference: Signal, estimate: Signal) -> float:
    """Narrow-band PESQ on the raw scale of P.862, -0.5 to 4.5: the papers' "PESQ". Args as `pesq_nb`."""
    return raw_pesq(pesq_nb(reference, estimate))


def raw_pesq(mos_lqo: float) -> float:
    """Raw P.862 score of a narrow-band MOS-LQO: the inverse of P.862.1."""
    return (P862_1_OFFSET - math.log(P862_1_SPAN / (mos_lqo - P862_1_LOW) - 1.0)) / P862_1_SLOPE


def estoi(reference: Signal, estimate: Signal) -> float:
    """Extended short-time objective intelligibility (Jensen and Taal 2016), up to 1: the papers' (E)STOI.

    Args: reference, estimate: (L,) float at 16 kHz; at least 0.4 s of speech, else NaN.
    """
    stoi = require("pystoi").stoi
    reference, estimate = _pair(reference, estimate)
    if not reference.any() or not estimate.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi warns so of too little speech
        try:
            return float(stoi(reference, estimate, SAMPLE_RATE, extended=True))
        except (RuntimeWarning, ValueError):
            return math.nan


def dnsmos(estimate: Signal) -> tuple[float, float, float]:
    """DNSMOS P.835 (Reddy et al. 2022): predicted MOS of signal, background and overall (SIG, BAK, OVRL).

    Args: estimate: (L,) float at 16 kHz, full scale 1 (the level matters); repeated up to 9.01 s, longer
    signals are averaged over windows one second apart.
    """
    if not len(estimate):
        return math.nan, math.nan, math.nan
    audio = np.asarray(estimate, dtype=np.float32)
    while len(audio) < DNSMOS_WINDOW_SAMPLES:
        audio = np.concatenate((audio, audio))
    # published window count: from whole seconds, so the last window that would fit is often left out
    windows = int(len(audio) // SAMPLE_RATE - DNSMOS_WINDOW_SAMPLES / SAMPLE_RATE) + 1
    starts = [n * SAMPLE_RATE for n in range(windows)]
    network = _dnsmos_network()
    outputs = [network.run(None, {"input_1": audio[None, n : n + DNSMOS_WINDOW_SAMPLES]})[0][0] for n in starts]
    mos = [np.polyval(mapping, output) for mapping, output in zip(DNSMOS_MAPPINGS, np.transpose(outputs), strict=True)]
    return float(np.mean(mos[0])), float(np.mean(mos[1])), float(np.mean(mos[2]))


def score(
    clean: Signal,
    noisy: Signal,
    estimate: Signal,
    sample_rate: int,
    families: Iterable[str] = tuple(FAMILIES),
) -> dict[str, float]:
    """Score one estimate, by the names in METRICS; the noise is noisy - clean.

    Args:
        clean, noisy, estimate: (L,) float at `sample_rate`, which must be 16000 Hz.
        families: which of FAMILIES.
    """
    if sample_rate != SAMPLE_RATE:
        raise UdseError(f"expected audio at {SAMPLE_RATE} Hz, got {sample_rate} Hz: resample it first")
    clean, noisy = _pair(clean, noisy)
    clean, estimate = _pair(clean, estimate)
    values: dict[str, tuple[float, ...]] = {}
    for family in families:
        if family == "si":
            values[family] = si_sir_sar(clean, noisy - clean, estimate)
        elif family == "pesq":
            narrow_band = pesq_nb(clean, estimate)
            values[family] = pesq_wb(clean, estimate), narrow_band, raw_pesq(narrow_band)
        elif family == "estoi":
            values[family] = (estoi(clean, estimate),)
        elif family == "dnsmos":
            values[family] = dnsmos(estimate)
        else:
            raise UdseError(f"expected metrics among {', '.join(FAMILIES)}, got {family!r}")
    return {name: value for family in values for name, value in zip(FAMILIES[family], values[family], strict=True)}


def _pair(reference: Signal, estimate: Signal) -> tuple[Signal, Signal]:
    reference, estimate = np.asarray(reference, dtype=np.float64), np.asarray(estimate, dtype=np.float64)
    if reference.ndim != 1 or reference.shape != estimate.shape or not reference.size:
        message = f"expected two mono signals of one length, got shapes {reference.shape} and {estimate.shape}"
        raise UdseError(f"{message}: cut them to the same samples of one channel")
    if not (np.isfinite(reference).all() and np.isfinite(estimate).all()):
        raise UdseError("expected finite samples, got NaN or infinity: check how the audio was written")
    return reference, estimate


def _projection(signal: Signal, onto: Signal) -> Signal:
    """(<signal, onto> / |onto|^2) onto; zero for a silent `onto`."""
    energy = onto @ onto
    return (signal @ onto / energy) * onto if energy > 0 else np.zeros_like(onto)


def _decibels(part: Signal, rest: Signal) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(10 * np.log10((part @ part) / (rest @ rest)))


def _pesq(reference: Signal, estimate: Signal, band: str) -> float:
    package = require("pesq")
    reference, estimate = _pair(reference, estimate)
    if not reference.any() or not estimate.any():
        return math.nan
    if len(reference) > PESQ_SAFE_SAMPLES:
        return _pesq_apart(reference, estimate, band)
    try:
        return float(package.pesq(SAMPLE_RATE, reference, estimate, band))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return math.nan


def _pesq_apart(reference: Signal, estimate: Signal, band: str) -> float:
    """Compute PESQ in a process of its own; NaN if the reference C code fails or crashes."""
    program = (
        "import sys, numpy, pesq; r, e = numpy.frombuffer(sys.stdin.buffer.read()).reshape(2, -1); "
        f"print(pesq.pesq({SAMPLE_RATE}, r, e, sys.argv[1]))"
    )
    signals = np.stack((reference, estimate)).tobytes()
    done = subprocess.run([sys.executable, "-c", program, band], input=signals, capture_output=True, check=False)
    return float(done.stdout) if done.returncode == 0 else math.nan


@lru_cache(maxsize=1)
def _dnsmos_network() -> Any:
    """Load the primary P.835 network that the speechmos package ships.

    Only its file is used: importing speechmos.dnsmos needs librosa, for a network that is not reported here.
    """
    runtime = require("onnxruntime")
    folder = Path(str(require("speechmos").__file__)).parent
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # files run in parallel, not layers
    path = str(folder / "dnsmos_models" / "sig_bak_ovr.onnx")
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
