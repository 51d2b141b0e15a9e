"""The predictions: what is counted is what a formula says, and the page in the repository is what the script gives."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline", HERE / "roofline.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["roofline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_convolution_and_a_product_are_counted(roofline: ModuleType) -> None:
    call = roofline.Call()
    x, weight = torch.empty(2, 96, 8, 16, device="meta"), torch.empty(32, 96, 3, 3, device="meta")
    a, b = torch.empty(2000, 7, device="meta"), torch.empty(7, 5, device="meta")
    with roofline.Counting(call):
        torch.nn.functional.conv2d(x, weight, padding=1)
        a @ b
    parts = call.parts()
    assert parts["3x3 convolutions"].flop == 2 * 9 * 96 * 32 * 2 * 8 * 16
    assert parts["3x3 convolutions"].bytes == 4 * (2 * 96 * 8 * 16 + 9 * 96 * 32 + 2 * 32 * 8 * 16)
    assert parts["1x1 shortcuts and attention"].flop == 2 * 2000 * 7 * 5
    slow = roofline.Device("", "", flops=1e9, bandwidth=1e12)
    assert call.seconds(slow) == pytest.approx(sum(p.flop for p in parts.values()) / 1e9 + 2e-6)


def test_the_page_is_what_the_script_gives(roofline: ModuleType) -> None:
    """A change of the network or its kernels changes the prediction: python benchmarks/roofline.py -o ..."""
    there = (HERE / "results" / "gpu.md").read_text("utf-8").splitlines()
    page = list(roofline.page([]))
    assert there[: there.index("## Measured")] == page[: page.index("## Measured")]


def test_every_number_of_a_device_says_what_it_is(roofline: ModuleType) -> None:
    page = list(roofline.page([]))
    before = page[: page.index("## Measured")]
    of_devices = [line for line in before if line.startswith(("| T4", "| H"))]
    assert len(of_devices) > 10
    assert all(line.count("(predicted)") >= 2 for line in of_devices)


def test_what_was_measured_is_put_in(roofline: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "measured.md").write_text("# Speed on a GPU\n\n- a card\n")
    page = list(roofline.page([tmp_path / "measured.md"]))
    assert page[page.index("## Measured") :] == ["## Measured", "", "## Speed on a GPU", "", "- a card"]
