"""Which convolution runs: own kernels where they are faster and right, each shape measured once, cuDNN's otherwise."""

from __future__ import annotations

import pytest
import torch

from udse_fast.errors import UdseError
from udse_fast.kernels.convolution import Convolution, choice, convolution, reference
from udse_fast.kernels.convolution.packing import packed
from udse_fast.kernels.fused_layers import Norm
from udse_fast.kernels.fused_layers.reference import moments, tile_statistics


def a_job(channels: int = 8, frames: int = 6) -> Convolution:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((1, 8, 4, frames), (channels, 8, 3, 3)))
    return Convolution(x, weight, measured=True)


class Bench:
    """Forms that say what they take, instead of a GPU."""

    def __init__(self) -> None:
        self.times = {"reference": 1.0, "cuda": 0.5, "triton": 0.7}
        self.wrong = dict[str, float]()
        """Form -> what its result is multiplied by, or its variance, or 0: it fails."""
        self.wrong_statistics = dict[str, float]()
        self.measured, self.called = list[str](), list[str]()

    def form(self, name: str) -> choice.Form:
        def call(job: Convolution) -> reference.Convolved:
            self.called.append(name)
            if self.wrong.get(name) == 0:
                raise RuntimeError("no such instruction\nmore")
            out = reference.convolution(job)[0] * self.wrong.get(name, 1)
            statistics = tile_statistics(out)
            statistics[1] *= self.wrong_statistics.get(name, 1)
            return out, statistics

        call.__name__ = name
        return call

    def milliseconds(self, form: choice.Form, job: Convolution) -> float:
        name = "reference" if form is reference.convolution else form.__name__
        self.measured.append(name)
        return self.times[name]

    def used(self, job: Convolution) -> str:
        """The form of a call."""
        convolution(job)
        return self.called[-1] if self.called else "reference"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "_broken", set())
    monkeypatch.setattr(choice, "form", bench.form)
    monkeypatch.setattr(choice, "forms", lambda job: [name for name in choice.OWN if name not in choice._broken])
    monkeypatch.setattr(choice, "milliseconds", bench.milliseconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("UDSE_CONVOLUTION", raising=False)
    return bench


def test_the_fastest_is_taken_and_each_shape_measured_once(bench: Bench) -> None:
    assert bench.used(a_job()) == "cuda"
    assert bench.measured == ["reference", "cuda", "triton"]
    assert bench.used(a_job()) == "cuda"
    assert len(bench.measured) == 3
    bench.times = {"reference": 1.0, "cuda": 1.2, "triton": 0.7}
    assert bench.used(a_job(frames=7)) == "triton"
    assert len(bench.measured) == 6
    assert bench.used(a_job()) == "cuda"  # what was chosen for it


def test_it_is_never_slower_than_the_library(bench: Bench) -> None:
    bench.times |= {"cuda": 1.01, "triton": 0.99}  # the last may be chance
    assert bench.used(a_job()) == "reference"


@pytest.mark.parametrize("kind", ["wrong", "wrong_statistics", "failing", "not a number"])
def test_what_is_not_right_is_not_used_again(bench: Bench, kind: str) -> None:
    if kind == "wrong_statistics":
        bench.wrong_statistics["cuda"] = 1.3
    else:
        bench.wrong["cuda"] = {"wrong": 1.1, "failing": 0.0, "not a number": float("nan")}[kind]
    with pytest.warns(RuntimeWarning, match=r"^the convolution in cuda is not used .*(differs|instruction$)"):
        assert bench.used(a_job()) == "triton"
    bench.wrong.clear()
    assert bench.used(a_job(16)) == "triton"


def test_a_state_that_diverged_says_nothing_about_kernels(bench: Bench) -> None:
    job = a_job()
    assert isinstance(job.input, torch.Tensor)
    convolution(job._replace(input=job.input / 0))
    assert not bench.measured
    assert bench.used(job) == "cuda"


def test_nothing_is_measured_while_a_graph_is_recorded_or_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert bench.used(a_job()) == "reference"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert bench.used(a_job()) == "reference"
    assert not bench.measured
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert bench.used(a_job()) == "cuda"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert bench.used(a_job()) == "cuda"  # it is known by then


def test_the_switch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_CONVOLUTION", "cudnn")
    convolution(a_job())
    assert not bench.called
    monkeypatch.setenv("UDSE_CONVOLUTION", "own")
    bench.times["cuda"] = 3.0
    assert bench.used(a_job()) == "cuda"
    assert not bench.measured
    monkeypatch.setenv("UDSE_CONVOLUTION", "mine")
    with pytest.raises(UdseError, match="UDSE_CONVOLUTION must be one of own, cudnn, auto; got 'mine'"):
        convolution(a_job())


def test_a_cpu_has_the_library_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("own", "auto"):
        monkeypatch.setenv("UDSE_CONVOLUTION", value)
        job = a_job()
        assert isinstance(job.input, torch.Tensor)
        expected = torch.nn.functional.conv2d(job.input, job.weight, padding=1)
        torch.testing.assert_close(convolution(job)[0], expected)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_who_takes_what(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms with numbers per frame, float32 and, before sm_80, bfloat16 are the library's."""

    class OnGpu(torch.Tensor):
        device = torch.device("cuda", 0)

    monkeypatch.setattr(choice, "available", lambda name, device: name == "cuda" or capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.delenv("UDSE_BACKEND", raising=False)
    monkeypatch.setattr(choice, "_broken", set())
    own = ["cuda"] + ["triton"] * (capability >= (8, 0))
    channel = torch.zeros(8)
    for dtype, expected in ((torch.float16, own), (torch.bfloat16, own if len(own) > 1 else []), (torch.float32, [])):
        x = torch.zeros(1, 8, 2, 3, dtype=dtype).as_subclass(OnGpu)
        assert choice.forms(Convolution(x, channel)) == expected
        assert choice.forms(Convolution(Norm(x, channel, channel, 2), channel)) == expected
        for norm in (
            Norm(x, channel, channel, 2, activate=False),
            Norm(x, channel, channel, 2, before=torch.zeros(1, 8, 1, 3)),
        ):
            assert choice.forms(Convolution(norm, channel)) == []
    monkeypatch.setenv("UDSE_BACKEND", "cuda")
    assert choice.forms(Convolution(torch.zeros(1, 8, 2, 3).half().as_subclass(OnGpu), channel)) == ["cuda"]


def test_weights_are_packed_once_and_anew_when_they_are_others() -> None:
    weight = torch.nn.Parameter(torch.randn(40, 37, 3, 3), requires_grad=False)
    first, second = packed(weight, (33, 4))
    assert (first.shape, second.shape) == ((2, 9, 64, 32), (1, 9, 64, 32))
    assert torch.equal(first[1, 5, 39, :1], weight[39, 32:33, 1, 2])
    assert torch.equal(second[0, 6, 11, :4], weight[11, 33:, 2, 0])
    assert not first[1, :, :, 1:].any()
    assert not second[:, :, 40:].any()
    assert packed(weight, (33, 4))[0] is first
    weight.data = weight.data.half()
    assert packed(weight, (33, 4))[0].dtype == torch.float16
    assert len(packed(weight, (37,))) == 1


def test_moments_of_tiles_are_those_of_the_map() -> None:
    x = 20 + torch.randn(2, 3, 9, 37, dtype=torch.float64)
    variance, mean = torch.var_mean(x.flatten(2), 2, correction=0)
    for result, expected in zip(moments(tile_statistics(x)), (mean, variance), strict=True):
        torch.testing.assert_close(result, expected)
