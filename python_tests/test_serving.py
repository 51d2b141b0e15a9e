"""The server: right results, nobody disturbed by others, limits kept, clients refused politely, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import AsyncIterator, Coroutine
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import websockets

from udse_fast import Enhancer, UdseError
from udse_fast.audio.pcm import FORMATS
from udse_fast.serving.batcher import Batcher, Work, compute
from udse_fast.serving.capacity import real_time_streams, streams_that_fit
from udse_fast.serving.inbox import Inbox
from udse_fast.serving.limits import Limits, Pace
from udse_fast.serving.metrics import Counter, Histogram, Metrics
from udse_fast.serving.server import Server, tls_context
from udse_fast.serving.session import Wanted
from udse_fast.streaming.native import NativeStream

ROOT = Path(__file__).parent.parent
DATA = ROOT / "python_tests" / "data"


@pytest.fixture(scope="module")
def enhancer(tiny_checkpoints: dict[str, Path]) -> Enhancer:
    return Enhancer(tiny_checkpoints["causal"], "ddrm", steps=2, samples=1, readout="wiener", precision="float32")


def speech(length: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(length) * 3000).astype("<i2")


def checked(work: Coroutine[Any, Any, None]) -> None:
    """A hanging server is a failure, not a hanging suite."""
    asyncio.run(asyncio.wait_for(work, 120))


@contextlib.asynccontextmanager
async def running(enhancer: Enhancer, capacity: int = 8, **options: Any) -> AsyncIterator[tuple[Server, str]]:
    server = Server(enhancer, capacity, **options)
    async with server.listening("localhost", 0, shutdown_seconds=5) as port:
        yield server, f"localhost:{port}"


async def talk(address: str, samples: np.ndarray, pieces: int = 5, query: str = "", **options: Any) -> bytes:
    """What comes back, to the end."""
    async with websockets.connect(f"ws://{address}/stream{query}", **options) as connection:
        facts = json.loads(await connection.recv())
        assert facts["latency_samples"] > 0
        sending = asyncio.create_task(send(connection, samples, pieces))
        received = b"".join([message async for message in connection])
        await sending
        assert connection.close_code == 1000
    return received


async def send(connection: Any, samples: np.ndarray, pieces: int) -> None:
    for piece in np.array_split(samples, pieces):
        await connection.send(piece.tobytes())
    await connection.send("end")


async def closing(address: str, messages: list[Any], query: str = "", *, read: bool = True) -> tuple[int, str]:
    """Code and reason with which the server closes, after the messages."""
    async with websockets.connect(f"ws://{address}/stream{query}", max_queue=1) as connection:
        for message in messages:
            with contextlib.suppress(websockets.ConnectionClosed):
                await connection.send(message)
        if read:
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await connection.recv()
        await connection.wait_closed()
        return connection.close_code or 0, connection.close_reason or ""


async def all_gone(server: Server) -> None:
    while server.channels:
        await asyncio.sleep(0.01)


async def get(url: str, headers: dict[str, str] | None = None, context: Any = None) -> tuple[int, str, Any]:
    def fetch() -> tuple[int, str, Any]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), context=context) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers

    return await asyncio.to_thread(fetch)


# -- results -----------------------------------------------------------------------------------------------------------


def test_clients_get_what_enhance_gives_whatever_others_do(enhancer: Enhancer) -> None:
    signals = [speech(9000 + 700 * n, seed=n) for n in range(4)]

    async def check() -> None:
        async with running(enhancer) as (server, address):
            answers = await asyncio.gather(*(talk(address, x, 3 + 4 * n) for n, x in enumerate(signals)))
        for x, answer in zip(signals, answers, strict=True):
            got, expected = np.frombuffer(answer, "<i2"), enhancer.enhance(x.astype(np.int16), 16000, causal=True)
            assert len(got) == len(x)
            assert np.abs(got - expected.astype(float)).max() <= 1  # batches round differently
        assert server.channels == 0

    checked(check())


def test_streams_that_wait_are_computed_together(enhancer: Enhancer) -> None:
    async def check() -> None:
        async with running(enhancer, batch_wait_seconds=0.05) as (server, address):
            await asyncio.gather(*(talk(address, speech(8000), 4) for _ in range(4)))
            assert sum(server.metrics.batch.counts) < server.metrics.batch.total  # some batch had more than one stream
            assert server.metrics.audio.values[""] == pytest.approx(4 * 8000 / 16000)

    checked(check())


def test_two_channels_of_floats_at_another_rate(enhancer: Enhancer) -> None:
    x = np.random.default_rng(1).standard_normal((2, 6001)).astype(np.float32) * 0.1

    async def check() -> None:
        async with running(enhancer) as (_, address):
            answer = await talk(address, x.T.copy(), 3, "?rate=22050&channels=2&format=f32le")
        got = np.frombuffer(answer, "<f4").reshape(-1, 2).T
        np.testing.assert_allclose(got, enhancer.enhance(x, 22050, causal=True), atol=1e-5)

    checked(check())


@pytest.mark.parametrize("name", list(FORMATS))
def test_interleaved_pcm_of_two_channels_goes_through_unchanged(name: str) -> None:
    wanted = Wanted(16000, 2, name)
    message = FORMATS[name].encode(FORMATS[name].decode(np.random.default_rng(0).bytes(48 * 100)))  # NaN stay NaN
    decoded = wanted.decode(message)
    assert decoded.shape[0] == 2
    np.testing.assert_array_equal(decoded[1], FORMATS[name].decode(message)[1::2])
    assert wanted.encode(decoded) == message


def test_not_a_number_is_silence_and_the_stream_goes_on(enhancer: Enhancer) -> None:
    x = np.zeros(8000, "<f4")
    x[4000] = np.nan

    async def check() -> None:
        async with running(enhancer) as (_, address):
            answer = np.frombuffer(await talk(address, x, 4, "?format=f32le"), "<f4")
        assert len(answer) == len(x)
        assert np.isfinite(answer).all()

    checked(check())


# -- who is let in -----------------------------------------------------------------------------------------------------


def test_one_too_many_is_refused_politely_and_the_others_do_not_notice(enhancer: Enhancer) -> None:
    x = speech(8000)

    async def check() -> None:
        async with running(enhancer, capacity=2) as (server, address):
            first = await websockets.connect(f"ws://{address}/stream")
            second = await websockets.connect(f"ws://{address}/stream")
            await second.recv()
            assert await closing(address, []) == (1013, "all streams of this server are taken; try again later")
            assert server.metrics.refused.values == {"no_room": 1}
            await second.close()
            assert len(await talk(address, x)) == 2 * len(x)  # there is room again
            await first.recv()
            sending = asyncio.create_task(send(first, x, 4))
            assert sum([len(message) async for message in first]) == 2 * len(x)
            await sending

    checked(check())


def test_a_stereo_stream_takes_the_room_of_two(enhancer: Enhancer) -> None:
    async def check() -> None:
        async with (
            running(enhancer, capacity=2) as (_, address),
            websockets.connect(f"ws://{address}/stream") as first,
        ):
            await first.recv()
            assert (await closing(address, [], "?channels=2"))[0] == 1013

    checked(check())


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 401),
        ({"Authorization": "Bearer wrong"}, "", 401),
        ({"Authorization": "Basic right"}, "", 401),
        ({"Authorization": "Bearer "}, "", 401),
        ({}, "?token=", 401),
        ({}, "?token=rightandmore", 401),
        ({}, "?token=%C3%BC", 401),
        ({"Authorization": "Bearer right"}, "", 200),
        ({"Authorization": "bearer also"}, "", 200),
        ({}, "?token=right", 200),
    ],
)
def test_streams_and_metrics_need_a_token(enhancer: Enhancer, headers: dict[str, str], query: str, status: int) -> None:
    async def check() -> None:
        async with running(enhancer, tokens=["right", "also"]) as (_, address):
            assert (await get(f"http://{address}/metrics{query}", headers))[0] == status
            assert (await get(f"http://{address}/health"))[0] == 200
            if status == 200:
                assert await talk(address, speech(4000), query=query, additional_headers=headers)
            else:
                with pytest.raises(websockets.InvalidStatus, match="401"):
                    await talk(address, speech(4000), query=query, additional_headers=headers)

    checked(check())


def test_a_page_of_another_server_may_not_use_the_stream(enhancer: Enhancer) -> None:
    async def check() -> None:
        async with running(enhancer) as (_, address):
            with pytest.raises(websockets.InvalidStatus, match="403"):
                await talk(address, speech(4000), origin="http://elsewhere.example")
            assert await talk(address, speech(4000), origin=f"http://{address}")

    checked(check())


def test_tls_and_certificates_that_are_none(enhancer: Enhancer, tmp_path: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(DATA / "localhost.crt"))
    x = speech(4000)

    async def check() -> None:
        server = Server(enhancer, 2)
        tls = tls_context(DATA / "localhost.crt", DATA / "localhost.key")
        async with server.listening("localhost", 0, tls, shutdown_seconds=5) as port:
            assert (await get(f"https://localhost:{port}/health", context=trusted))[0] == 200
            async with websockets.connect(f"wss://localhost:{port}/stream", ssl=trusted) as connection:
                await connection.recv()
                await send(connection, x, 2)
                assert sum([len(message) async for message in connection]) == 2 * len(x)

    checked(check())
    (tmp_path / "other.key").write_text("no key")
    with pytest.raises(UdseError, match="expected a certificate and its key in PEM"):
        tls_context(DATA / "localhost.crt", tmp_path / "other.key")
    with pytest.raises(UdseError, match="cannot read"):
        tls_context(DATA / "localhost.crt", tmp_path / "none.key")


# -- clients that do what they may not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "messages", "code", "reason"),
    [
        ("", [b"odd"], 1007, "expected whole samples, 2 bytes for all channels, got 3 bytes"),
        ("?channels=2&format=f32le", [bytes(12)], 1007, "8 bytes for all channels, got 12"),
        ("", ["hello"], 1003, 'the text "end"'),
        ("", [bytes((1 << 16) + 2)], 1009, ""),
        ("?rate=7999", [], 1008, "sample_rate: expected a whole number of Hz"),
        ("?rate=17321", [], 1008, "rate: expected a multiple of 25 Hz up to 192000, got 17321"),
        ("?rate=384000", [], 1008, "rate: expected a multiple of 25 Hz up to 192000, got 384000"),
        ("?rate=abc", [], 1008, "rate: expected a whole number, got 'abc'"),
        ("?rate=99999999999999", [], 1008, "rate"),
        ("?channels=3", [], 1008, "channels: expected 1 to 2, got 3"),
        ("?channels=0", [], 1008, "channels"),
        ("?format=mp3", [], 1008, "format: expected one of s16le, f32le, "),
        ("", [], 1008, "no message for 0.3 s"),
    ],
)
def test_a_client_that_errs_is_told_how(
    enhancer: Enhancer, query: str, messages: list[Any], code: int, reason: str
) -> None:
    async def check() -> None:
        limits = Limits(message_bytes=1 << 16, idle_seconds=0.3)
        async with running(enhancer, limits=limits) as (server, address):
            got = await closing(address, messages, query)
            assert got[0] == code
            assert reason in got[1]
            await all_gone(server)
            assert server.metrics.failed.values[""] == 0

    checked(check())


def test_a_client_that_does_not_read_holds_up_nobody(enhancer: Enhancer) -> None:
    """Its results fill the buffers of both ends; then it is closed, while another goes through."""
    loud = np.ones(1 << 16, "<f4").tobytes()

    async def stall(address: str, closed: asyncio.Event) -> None:
        connection = await websockets.connect(f"ws://{address}/stream?rate=192000&format=f32le", max_queue=1)
        connection.transport.pause_reading()
        with contextlib.suppress(websockets.ConnectionClosed, asyncio.TimeoutError, OSError):
            while not closed.is_set():
                await asyncio.wait_for(connection.send(loud), 0.5)
        connection.transport.abort()

    async def check() -> None:
        limits = Limits(speed=1e6, burst_seconds=1e6, stall_seconds=0.5)
        async with running(enhancer, limits=limits) as (server, address):
            closed = asyncio.Event()
            stalled = asyncio.create_task(stall(address, closed))
            while not server.channels:
                await asyncio.sleep(0.01)
            x = speech(4000)
            assert len(await talk(address, x)) == 2 * len(x)
            await all_gone(server)
            closed.set()
            await stalled

    checked(check())


def test_garbage_before_the_handshake_is_survived_in_silence(
    enhancer: Enhancer, capfd: pytest.CaptureFixture[str]
) -> None:
    good = b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    attempts = [
        b"", b"\0" * 1000, b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 10_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000, good + b"\r\n",
        good + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: no\r\n\r\n",
        good + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + b"\xff" * 100,
    ]  # fmt: skip

    async def check() -> None:
        async with running(enhancer) as (server, address):
            for attempt in attempts:
                reader, writer = await asyncio.open_connection("localhost", int(address.split(":")[1]))
                writer.write(attempt)
                if not attempt:
                    writer.close()
                with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(100), 0.3)
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            x = speech(4000)
            assert len(await talk(address, x)) == 2 * len(x)
            assert server.channels == 0

    checked(check())
    assert capfd.readouterr().err == ""


def test_a_stream_whose_computation_fails_ends_alone(
    enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    streams = [enhancer.open_stream() for _ in range(3)]
    x = np.random.default_rng(0).standard_normal((3, 1, 4000)).astype(np.float32)

    def broken(self: Any, chunk: Any) -> Any:
        raise MemoryError("too large")

    monkeypatch.setattr(streams[1], "process", broken.__get__(streams[1]))
    monkeypatch.setattr(streams[1], "_checked", broken.__get__(streams[1]))
    first, second, third = compute([Work(s, c, 0.0, None) for s, c in zip(streams, x, strict=True)])  # type: ignore[arg-type]
    assert isinstance(second, MemoryError)
    assert {type(first), type(third)} == {np.ndarray}

    async def check() -> None:
        monkeypatch.setattr(Enhancer, "process_many", broken.__get__(enhancer))
        monkeypatch.setattr("udse_fast.streaming.stream.Stream.process", broken)
        async with running(enhancer) as (server, address):
            assert await closing(address, [bytes(4000)]) == (1011, "the server failed in this stream")
            assert server.metrics.failed.values[""] == 1

    checked(check())
    assert capfd.readouterr().err == "udse-fast: error: a stream failed: too large\n"


def test_streams_that_are_ahead_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[Any]] = []
    first_is_there = threading.Event()

    def computed(batch: list[Work]) -> list[Any]:
        batches.append([work.stream for work in batch])
        if len(batches) == 1:
            first_is_there.wait(5)
        return [work.stream for work in batch]

    monkeypatch.setattr("udse_fast.serving.batcher.compute", computed)

    async def check() -> None:
        batcher, chunk = Batcher(0.0, Metrics(lambda: 0, 0)), np.zeros((1, 1), np.float32)
        run = asyncio.create_task(batcher.run())

        def put(name: Any, ahead: bool) -> asyncio.Task[Any]:
            return asyncio.create_task(batcher.process(name, chunk, time.monotonic() + 60 * ahead))

        tasks = [put("first", True)]  # nobody else is there
        await asyncio.sleep(0.05)
        tasks += [put("a", True), put("b", False), put("c", True), put("d", False)]
        await asyncio.sleep(0.05)
        first_is_there.set()
        assert await asyncio.gather(*tasks) == ["first", "a", "b", "c", "d"]
        run.cancel()

    asyncio.run(check())
    assert batches == [["first"], ["b", "d"], ["a", "c"]]


def test_a_client_that_sends_fast_is_ahead(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends chunks of 320 samples in real time is not."""
    told: dict[bool, list[bool]] = {True: [], False: []}
    process = Batcher.process

    async def watched(self: Batcher, stream: Any, chunk: Any, waits_until: float) -> Any:
        told[chunk.shape[1] > 320].append(waits_until > time.monotonic())
        return await process(self, stream, chunk, waits_until)

    monkeypatch.setattr(Batcher, "process", watched)

    async def check() -> None:
        async with (
            running(enhancer) as (_, address),
            websockets.connect(f"ws://{address}/stream") as fast,
            websockets.connect(f"ws://{address}/stream") as live,
        ):
            await fast.recv(), await live.recv()
            await fast.send(bytes(2 * 32000))
            for _ in range(10):
                await live.send(bytes(640))
                await asyncio.sleep(0.03)

    checked(check())
    assert any(told[True])
    assert told[False]
    assert not any(told[False])


def test_many_clients_that_come_and_go_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    enhancer = Enhancer(device="cpu", precision="float32", steps=1, samples=1)
    assert isinstance(enhancer.open_stream(), NativeStream)
    streams = weakref.WeakSet[Any]()  # megabytes each: they go with the client, not with the next collection of garbage
    open_stream = Enhancer.open_stream

    def opened(self: Enhancer, *arguments: Any, **settings: Any) -> Any:
        streams.add(stream := open_stream(self, *arguments, **settings))
        return stream

    monkeypatch.setattr(Enhancer, "open_stream", opened)

    async def come_and_go(address: str, number: int) -> None:
        connection = await websockets.connect(f"ws://{address}/stream")
        await connection.send(bytes(2000))
        if number % 3 == 0:
            connection.transport.abort()  # no goodbye
        else:
            await connection.close()

    async def check() -> None:
        async with running(enhancer, capacity=100) as (server, address):
            before = len(asyncio.all_tasks())
            for batch in range(10):
                await asyncio.gather(*(come_and_go(address, batch * 10 + n) for n in range(10)))
            await all_gone(server)
            await asyncio.sleep(0.05)
            assert len(asyncio.all_tasks()) <= before
            assert server.metrics.opened.values[""] == 100
            assert sum(server.metrics.closed.values.values()) == 100
            assert len(streams) <= 10  # of the last batch

    gc.disable()
    try:
        checked(check())
    finally:
        gc.enable()


def test_a_fast_client_is_slowed_to_the_pace() -> None:
    now = 0.0
    pace = Pace(speed=2.0, burst=3.0, clock=lambda: now)
    assert pace.spend(3.0) == 0  # the burst
    assert pace.spend(1.0) == pytest.approx(0.5)  # a second of audio at twice real time
    now = 0.5
    assert pace.spend(0.5) == pytest.approx(0.25)
    now = 1000.0
    assert pace.spend(3.0) == 0  # the budget does not grow beyond the burst
    assert pace.spend(1.0) == pytest.approx(0.5)
    assert Pace(1.0, 1e-9, lambda: 0.0).spend(0.0) == pytest.approx(0.002)  # an empty message is work too


def test_the_inbox_makes_the_sender_wait_and_keeps_the_order() -> None:
    async def check() -> None:
        inbox, x = Inbox(capacity=10), np.arange(30, dtype=np.float32).reshape(1, 30)
        await inbox.put(x[:, :10])
        waiting = asyncio.create_task(inbox.put(x[:, 10:25]))
        await asyncio.sleep(0)
        assert not waiting.done()
        taken = [(await inbox.take(7) or (x, 0))[0] for _ in range(3)]
        assert [part.shape[1] for part in taken] == [7, 7, 7]
        await waiting
        await inbox.put(x[:, 25:])
        inbox.end()
        while (turn := await inbox.take(7)) is not None:
            taken.append(turn[0])
        np.testing.assert_array_equal(np.concatenate(taken, axis=1), x)
        discarded = asyncio.create_task(inbox.put(x))
        await asyncio.sleep(0)
        inbox.end(discard=True)
        discarded.cancel()
        assert await inbox.take(7) is None

    checked(check())


# -- health, metrics, page ---------------------------------------------------------------------------------------------


def test_health_metrics_and_other_addresses(enhancer: Enhancer) -> None:
    async def check() -> None:
        async with running(enhancer, capacity=3) as (_, address):
            await talk(address, speech(4000))
            status, text, headers = await get(f"http://{address}/health")
            assert (status, json.loads(text)) == (200, {"status": "ok", "streams": 0, "capacity": 3})
            status, text, headers = await get(f"http://{address}/metrics")
            assert status == HTTPStatus.OK
            assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = text.splitlines()
            for line in ("udse_streams 0", "udse_streams_limit 3", "udse_streams_opened_total 1.000000",
                         'udse_streams_closed_total{code="1000"} 1', "udse_audio_seconds_total 0.250000"):  # fmt: skip
                assert line in lines
            sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"\})? [0-9.e+-]+|# (HELP|TYPE) [a-z_]+ .+')
            assert all(sample.fullmatch(line) for line in lines)
            assert (await get(f"http://{address}/etc/passwd"))[0] == 404
            assert (await get(f"http://{address}/../server.py"))[0] == 404
            assert (await get(f"http://{address}/stream"))[0] == 426  # no websocket
            assert (await get(f"http://{address}//["))[0] == 400
            assert (await get(f"http://{address}/stream", {"Origin": "http://["}))[0] == 400
            assert (await get(f"http://{address}/stream", {"Origin": "null"}))[0] == 403

    checked(check())


def test_a_histogram_is_cumulative_and_a_counter_has_labels() -> None:
    histogram = Histogram("h", "", (1, 2))
    for value in (0.5, 1, 1.5, 7):
        histogram.observe(value)
    assert histogram.samples() == [
        'h_bucket{le="1"} 2', 'h_bucket{le="2"} 3', 'h_bucket{le="+Inf"} 4', "h_sum 10.000000", "h_count 4",
    ]  # fmt: skip
    counter = Counter("c", "", "code")
    counter.add(label="1000")
    counter.add(2, label="1000")
    assert counter.samples() == ['c{code="1000"} 3']


def test_the_page_needs_nothing_from_elsewhere_and_its_policy_allows_what_it_does(enhancer: Enhancer) -> None:
    async def check() -> None:
        async with running(enhancer) as (_, address):
            status, text, headers = await get(f"http://{address}/")
        assert status == HTTPStatus.OK
        assert not re.search(r"(https?:)?//[a-z]+\.", text)
        assert not re.search(r"<[^>]+ (on[a-z]+|style)=", text.split("<script>")[0])  # the policy forbids these
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert len(re.findall("'sha256-[A-Za-z0-9+/=]{44}'", policy)) == 2
        assert "unsafe" not in policy

    checked(check())


# -- start and end -----------------------------------------------------------------------------------------------------


def test_going_down_gives_every_stream_its_rest(enhancer: Enhancer) -> None:
    x = speech(7000)

    async def check() -> None:
        async with running(enhancer) as (server, address):
            connection = await websockets.connect(f"ws://{address}/stream")
            await connection.recv()
            for piece in np.array_split(x, 3):
                await connection.send(piece.tobytes())
            while server.metrics.audio.values[""] < len(x) / 16000 - 1e-9:
                await asyncio.sleep(0.01)
            reading = asyncio.create_task(_everything(connection))
        received, code = await reading
        assert code == 1001
        expected = enhancer.enhance(x.astype(np.int16), 16000, causal=True)
        assert np.abs(np.frombuffer(received, "<i2") - expected.astype(float)).max() <= 1

    async def _everything(connection: Any) -> tuple[bytes, int]:
        received = b""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                received += await connection.recv()
        return received, connection.close_code

    checked(check())


@pytest.mark.parametrize(("always", "each", "expected"), [(0.05, 0.1, 6), (0.5, 0.3, 1), (0.0, 0.0, 256)])
def test_capacity_is_what_fits(always: float, each: float, expected: int) -> None:
    """Where serving takes 5 % of the time plus 10 % a stream, 6 fit into 70 %."""
    assert streams_that_fit(lambda count: always + each * count) == expected


@pytest.mark.parametrize(("prior", "blocks"), [("causal", {}), ("speech", {"block_seconds": 0.5})])
def test_capacity_is_measured_with_clients(
    prior: str, blocks: dict[str, float], tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computing that takes twice its audio leaves room for one; a proxy for the way out is not asked."""
    enhancer = Enhancer(tiny_checkpoints[prior], "ddrm", steps=1, samples=1, precision="float32")
    together = set[int]()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    def slow(streams: Any, chunks: Any) -> Any:
        time.sleep(2 * chunks[0].shape[-1] / 16000)  # far above the limit, however late the clients wake up
        together.add(len(streams))
        return Enhancer.process_many(streams, chunks)

    monkeypatch.setattr("udse_fast.serving.batcher.Enhancer", SimpleNamespace(process_many=slow))
    assert real_time_streams(enhancer, **blocks) == 1
    assert together == {1}


def test_capacity_of_streams_that_fail_is_an_error(
    enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("udse_fast.serving.batcher.Enhancer", SimpleNamespace())  # has no process_many
    monkeypatch.setattr("udse_fast.serving.batcher._alone", lambda *_: UdseError("no memory"))
    with pytest.raises(UdseError, match=r"cannot measure how many streams fit .* failed .*--streams N"):
        real_time_streams(enhancer)
    assert "a stream failed: no memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port: expected 0 to 65535"),
        (["--host", "256.256.256.256"], "cannot listen"),
        (["--token-file", "missing"], "cannot read"),
        (["--certificate", "a.pem"], "--certificate and --key together"),
        (["--streams", "none"], "--streams: expected a whole number"),
        (["--max-speed", "0"], "speed: expected a number above 0"),
        (["--idle-seconds", "nan"], "idle_seconds"),
    ],
)
def test_the_command_says_what_does_not_fit(
    arguments: list[str], said: str, tiny_checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from udse_fast.cli import main

    fast = ["--checkpoint", str(tiny_checkpoints["causal"]), "--sampler", "ddrm", "--steps", "1", "--samples", "1"]
    streams = [] if "--streams" in arguments else ["--streams", "2"]
    assert main(["serve", *fast, *streams, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_command_serves_until_it_is_told_to_end(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# of the test\nsecret\n")
    command = [
        sys.executable, "-m", "udse_fast", "serve", "--port", "0", "--checkpoint", str(tiny_checkpoints["causal"]),
        "--sampler", "ddrm", "--steps", "1", "--samples", "1", "--streams", "2", "--token-file", str(tokens),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip().removeprefix("http://").rstrip("/")
            answer = asyncio.run(talk(address, speech(4000), query="?token=secret"))
            assert len(answer) == 8000
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_port_in_use_is_told_and_free_again_after_the_end(enhancer: Enhancer) -> None:
    async def check() -> None:
        async with running(enhancer) as (_, address):
            with pytest.raises(UdseError, match="cannot listen on localhost"):
                async with Server(enhancer, 1).listening("localhost", int(address.split(":")[1])):
                    pass
        with socket.socket() as probe, pytest.raises(OSError, match="refused"):
            probe.connect(("localhost", int(address.split(":")[1])))

    checked(check())


def test_malformed_clients_leave_the_server_as_it_was(enhancer: Enhancer, capfd: pytest.CaptureFixture[str]) -> None:
    """The short form of benchmarks/fuzz_serving.py."""
    spec = importlib.util.spec_from_file_location("fuzz_serving", ROOT / "benchmarks" / "fuzz_serving.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def check() -> None:
        async with running(enhancer, capacity=64) as (server, address):
            host, port = address.split(":")
            await module.fuzz(host, int(port), 150)
            await all_gone(server)
            assert server.metrics.failed.values[""] == 0
            x = speech(4000)
            assert len(await talk(address, x)) == 2 * len(x)

    checked(check())
    assert capfd.readouterr().err == ""
