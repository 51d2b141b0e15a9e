"""Counter-based noise: the published Philox vectors, the distribution, the same numbers for any cut."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from scipy import stats

from udse_fast import _core
from udse_fast.errors import UdseError
from udse_fast.kernels.complex_normal import ROLES, NoiseKey, complex_normal, reference

TOLERANCE = 2e-6  # float32 logarithm, root, sine and cosine of numbers up to 4.2


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    """The known-answer vectors of Random123 1.14 for philox4x32-10."""
    words = reference.philox(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_first_number_by_hand() -> None:
    """Frame 0, bins 0 and 1, step 0, role 0, seed 0 are the zero counter and key of the published words."""
    z = complex_normal(NoiseKey(0, "init_speech"), (1, 2, 1), torch.complex128)
    x = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
    u = ((x // 256).double() + 0.5) * 2.0**-24
    expected = torch.sqrt(-torch.log(u[[0, 2]])) * torch.exp(2j * torch.pi * u[[1, 3]])
    torch.testing.assert_close(z.flatten(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 63), (2, 3, 64), (3, 7, 65), (1, 256, 129), (5, 17, 31)])
def test_core_is_the_reference(isa: str, shape: tuple[int, int, int]) -> None:
    key = NoiseKey(2**63 + 12345, "predictor_noise", step=29, first_frame=2**32 - 70, first_sample=3)
    expected = reference.complex_normal(key, shape, torch.complex128)
    torch.testing.assert_close(complex_normal(key, shape).to(torch.complex128), expected, rtol=0, atol=TOLERANCE)


def test_core_over_the_whole_range_of_uniform_numbers(isa: str) -> None:
    """A million draws: tiny moduli (u next to 1) and large ones are as precise, relatively, as the rest."""
    key = NoiseKey(7, "init_speech")
    expected = reference.complex_normal(key, (1, 1024, 1024), torch.complex128)
    z = complex_normal(key, (1, 1024, 1024)).to(torch.complex128)
    assert ((z - expected).abs() / expected.abs()).max() < 1e-6


@pytest.mark.parametrize("cut", [1, 63, 64, 100])
def test_any_cut_over_frames_gives_the_same_bits(isa: str, cut: int) -> None:
    whole = complex_normal(NoiseKey(1, "corrector_speech", 5, first_frame=10), (2, 9, 130))
    first = complex_normal(NoiseKey(1, "corrector_speech", 5, first_frame=10), (2, 9, cut))
    rest = complex_normal(NoiseKey(1, "corrector_speech", 5, first_frame=10 + cut), (2, 9, 130 - cut))
    assert torch.equal(whole, torch.cat([first, rest], 2))


def test_any_split_over_samples_gives_the_same_bits(isa: str) -> None:
    whole = complex_normal(NoiseKey(1, "init_speech"), (4, 5, 33))
    parts = [complex_normal(NoiseKey(1, "init_speech", first_sample=b), (1, 5, 33)) for b in range(4)]
    assert torch.equal(whole, torch.cat(parts))


def test_thread_count_changes_nothing(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, shape = NoiseKey(9, "dither"), (2, 255, 130)
    serial = complex_normal(key, shape)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert torch.equal(serial, complex_normal(key, shape))


def test_distribution() -> None:
    """Circular, unit variance, Gaussian (Kolmogorov-Smirnov), no correlation within a counter."""
    z = complex_normal(NoiseKey(3, "init_speech"), (1, 128, 512))[0]
    for part in (z.real, z.imag):
        assert stats.kstest(part.flatten().numpy(), stats.norm(scale=0.5**0.5).cdf).pvalue > 1e-3
    n = z.numel() ** 0.5
    assert abs(z.abs().square().mean() - 1) < 5 / n
    assert abs((z * z).mean()) < 5 / n
    assert abs((z[0::2] * z[1::2].conj()).mean()) < 10 / n
    assert abs((z[:, 1:] * z[:, :-1].conj()).mean()) < 5 / n


def test_every_field_of_the_key_matters() -> None:
    keys = [NoiseKey(5, role) for role in ROLES]
    keys += [NoiseKey(6, "dither"), NoiseKey(5 + 2**32, "dither"), NoiseKey(5, "dither", 1)]
    keys += [NoiseKey(5, "dither", 0, 1), NoiseKey(5, "dither", 0, 0, 1)]
    draws = {tuple(torch.view_as_real(complex_normal(key, (1, 2, 2))).flatten().tolist()) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize(
    "arguments",
    [
        (1, "speech"),
        (-1, "dither"),
        (2**64, "dither"),
        (1, "dither", -1),
        (1, "dither", 0, -1),
        (1, "dither", 0, 0, 2**16),
    ],
)
def test_bad_keys(arguments: tuple) -> None:
    with pytest.raises(UdseError, match="got"):
        NoiseKey(*arguments)


def test_role_numbers_are_the_core_s() -> None:
    """Those of enum Role in the core's header, which count from 0; a recorded seed must keep its meaning."""
    header = (Path(__file__).parent.parent / "csrc" / "udse_core.hpp").read_text()
    enumerators = re.search(r"enum Role : std::uint32_t {(.*?)}", header, re.DOTALL)
    assert enumerators is not None
    names = re.findall(r"\w+", enumerators[1])
    assert names[:4] == ["init_speech", "init_noise", "corrector_speech", "corrector_noise"]  # recorded seeds
    assert {name: number for number, name in enumerate(names)} == ROLES


def test_too_many_bins() -> None:
    with pytest.raises(UdseError, match="131072 bins"):
        _core.complex_normal((0, 0, 0, 0, 0), torch.empty(1, 2**17 + 1, 0, dtype=torch.complex64).numpy(), 1)
