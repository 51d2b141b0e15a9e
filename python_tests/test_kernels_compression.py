"""Amplitude compression: by hand, there and back, at 0 and at the ends of float32."""

from __future__ import annotations

import cmath

import pytest
import torch

from udse_fast.errors import UdseError
from udse_fast.kernels.compression import compress, decompress, reference


def test_by_hand() -> None:
    z = complex(compress(torch.tensor([3 + 4j], dtype=torch.complex128)))
    assert z == pytest.approx(0.15 * 5**0.5 * cmath.exp(1j * cmath.phase(3 + 4j)))


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("exponent", [0.5, 0.3, 0.667, 1.0])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_core_is_the_float64_reference(isa: str, exponent: float, count: int) -> None:
    z = torch.randn(count, dtype=torch.complex64) * 10 ** torch.linspace(-8, 4, count)
    for function in ("compress", "decompress"):
        operation = {"compress": compress, "decompress": decompress}[function]
        expected = getattr(reference, function)(z.to(torch.complex128), exponent, 0.15)
        torch.testing.assert_close(operation(z, exponent, 0.15).to(torch.complex128), expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("exponent", [0.5, 0.3])
def test_there_and_back(backend: str, exponent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_BACKEND", backend)
    z = torch.randn(5, 77, dtype=torch.complex64)
    torch.testing.assert_close(decompress(compress(z, exponent), exponent), z, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("exponent", [0.5, 0.3])
def test_extremes_are_finite(backend: str, exponent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_BACKEND", backend)
    z = torch.tensor([0, -0.0, 1e-45, 1e-38, 1e-30j, 1e30, 1e37 - 1e37j], dtype=torch.complex64)
    for result in (compress(z, exponent), decompress(z[:5], exponent)):
        assert torch.view_as_real(result).isfinite().all()
    assert compress(z, exponent)[0] == 0
    assert compress(z, exponent)[5].abs() == pytest.approx(0.15 * 1e30**exponent, rel=1e-5)


def test_settings_out_of_range() -> None:
    z = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(UdseError, match="exponent must be in"):
        compress(z, 0.0)
    with pytest.raises(UdseError, match="factor must be positive"):
        decompress(z, 0.5, -1.0)
