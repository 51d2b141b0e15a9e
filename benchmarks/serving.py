"""Load test of `udse-fast serve` on loopback: streams in real time, twice as many, and clients that misbehave.

python benchmarks/serving.py                     # about six minutes; writes benchmarks/results/serving.md
python benchmarks/serving.py --seconds 5 --cycles 100 --out /tmp/serving.md

The server is a process of its own; the clients share the machine with it, as they have to on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import websockets

import udse_fast
from udse_fast.commands.info import processor

RATE, CHUNK_SECONDS = 16000, 0.02
WARM_SECONDS = 1.0
"""Of every client, at its start, that is left out: the first batches of a new size are slower."""
RESULTS = Path(__file__).parent / "results" / "serving.md"


@dataclass
class Client:
    """What a client in real time saw."""

    ages: list[float] = field(default_factory=list)
    """Seconds from the sending of a sample until it came back, of the oldest sample of every message."""
    refused: str = ""
    refused_after: float = 0.0
    samples: int = 0
    latency: float = 0.0


@contextlib.contextmanager
def server(streams: str, *options: str) -> Iterator[tuple[str, int, int]]:
    """A server process: its address, its process number, the channels that it serves at once."""
    command = [sys.executable, "-m", "udse_fast", "serve", "--port", "0", "--streams", streams, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            address = process.stdout.readline().strip().removeprefix("http://").rstrip("/")
            if not address:
                raise SystemExit(process.stderr.read())
            with urllib.request.urlopen(f"http://{address}/health") as answer:
                capacity = json.load(answer)["capacity"]
            yield address, process.pid, capacity
        finally:
            process.terminate()
            process.communicate(timeout=60)


def noise(seconds: float) -> bytes:
    """What clients send: silence would cost a server nothing."""
    samples = np.random.default_rng(0).standard_normal(round(seconds * RATE)) * 3000
    return samples.astype("<i2").tobytes()


async def in_real_time(address: str, seconds: float, delay: float) -> Client:
    """A client that sends a chunk every 20 ms by the clock, whatever comes back."""
    client = Client()
    await asyncio.sleep(delay)
    chunk_size, chunks = round(CHUNK_SECONDS * RATE), round(seconds / CHUNK_SECONDS)
    asked = time.perf_counter()
    async with websockets.connect(f"ws://{address}/stream", compression=None) as connection:
        try:
            client.latency = json.loads(await connection.recv())["latency_samples"] / RATE
        except websockets.ConnectionClosed as closed:
            client.refused = f"{closed.rcvd.code} {closed.rcvd.reason}" if closed.rcvd else "without a word"
            client.refused_after = time.perf_counter() - asked
            return client
        sent: list[float] = []
        sending = asyncio.create_task(_send_by_the_clock(connection, noise(CHUNK_SECONDS), chunks, sent))
        async for message in connection:
            now, first = time.perf_counter(), client.samples
            client.samples += len(message) // 2
            if first >= WARM_SECONDS * RATE and len(sent) < chunks:  # the rest after the end is not in real time
                client.ages.append(now - sent[first // chunk_size])
        await sending
    return client


async def _send_by_the_clock(connection: Any, chunk: bytes, count: int, sent: list[float]) -> None:
    started = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, started + number * CHUNK_SECONDS - time.perf_counter()))
        sent.append(time.perf_counter())
        await connection.send(chunk)
    await connection.send("end")


async def crowd(address: str, count: int, seconds: float) -> list[Client]:
    """`count` clients in real time, their starts spread over half a second."""
    return await asyncio.gather(*(in_real_time(address, seconds, 0.5 * n / count) for n in range(count)))


# -- clients that misbehave --------------------------------------------------------------------------------------------


async def slow_reader(address: str, seconds: float) -> str:
    """Sends in real time and reads nothing."""
    connection = await websockets.connect(f"ws://{address}/stream", max_queue=1)
    connection.transport.pause_reading()
    with contextlib.suppress(websockets.ConnectionClosed, asyncio.TimeoutError):
        await asyncio.wait_for(_send_by_the_clock(connection, noise(CHUNK_SECONDS), 10**6, []), seconds)
    connection.transport.abort()
    return "reads nothing"


async def fast_sender(address: str, seconds: float) -> str:
    """Sends as fast as the server reads."""
    second, sent, until = noise(1), 0, time.perf_counter() + seconds
    with contextlib.suppress(websockets.ConnectionClosed):
        async with websockets.connect(f"ws://{address}/stream", compression=None) as connection:
            reading = asyncio.create_task(_read_all(connection))
            with contextlib.suppress(asyncio.TimeoutError):
                while time.perf_counter() < until:
                    await asyncio.wait_for(connection.send(second), max(0.01, until - time.perf_counter()))
                    sent += 1
            reading.cancel()
    return f"sends as fast as it can: {sent} s of audio were taken in {seconds:.0f} s"


async def _read_all(connection: Any) -> None:
    async for _ in connection:
        pass


async def malformed(address: str, seconds: float) -> str:
    """One connection after the other with a message, a request or bytes that are wrong."""
    host, port = address.rsplit(":", 1)
    generator, tried, until = np.random.default_rng(0), 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        with contextlib.suppress(OSError, asyncio.TimeoutError, websockets.WebSocketException):
            if tried % 2:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(generator.bytes(generator.integers(1, 2000)))
                writer.close()
            else:
                rate = 25 * generator.integers(2000)
                async with websockets.connect(f"ws://{address}/stream?rate={rate}") as connection:
                    await connection.send([b"odd", "text", bytes(1 << 19)][tried // 2 % 3])
                    await asyncio.wait_for(_read_all(connection), 5)
        tried += 1
        await asyncio.sleep(0.05)
    return f"malformed messages, requests and bytes: {tried} connections"


async def come_and_go(address: str, cycles: int) -> float:
    """`cycles` connections that send something and leave, some without a goodbye; seconds."""
    started = time.perf_counter()
    for number in range(cycles):
        connection = await websockets.connect(f"ws://{address}/stream", compression=None)
        with contextlib.suppress(websockets.ConnectionClosed):  # where the one before is still there, and no room
            await connection.send(bytes(3200))
        if number % 3:
            await connection.close()
        else:
            connection.transport.abort()
    return time.perf_counter() - started


# -- the page ----------------------------------------------------------------------------------------------------------


def usage(process: int) -> tuple[float, float, int]:
    """Processor seconds, resident MiB and open files of a process (Linux)."""
    times = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert resident is not None
    seconds = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, int(resident[1]) / 1024, len(os.listdir(f"/proc/{process}/fd"))


def row(name: str, clients: list[Client], cores: float) -> str:
    """One line of the table."""
    served = [client for client in clients if not client.refused]
    ages = np.array([age for client in served for age in client.ages]) * 1000
    if not len(ages):
        return f"| {name} | {len(served)} | {len(clients) - len(served)} | | | | {cores:.2f} |"
    median, most = np.percentile(ages, [50, 99])
    refused = len(clients) - len(served)
    return f"| {name} | {len(served)} | {refused} | {median:.0f} | {most:.0f} | {ages.max():.0f} | {cores:.2f} |"


def measured(process: int, work: Any) -> tuple[Any, float]:
    """The result of a coroutine, and the cores that the server used meanwhile."""
    before, started = usage(process)[0], time.perf_counter()
    result = asyncio.run(work)
    return result, (usage(process)[0] - before) / (time.perf_counter() - started)


def report(seconds: float, cycles: int) -> Iterator[str]:
    """The lines of the page."""
    head = "| | served | refused | age of a sample, ms: median | 99 % | largest | cores of the server |"
    with server("auto") as (address, process, capacity):
        yield f"The server measured at its start that **{capacity} streams** fit into 70 % of the time."
        clients, cores = measured(process, crowd(address, capacity, seconds))
        latency = max(client.latency for client in clients)
        yield (
            f"The algorithm's latency is {1000 * latency:.1f} ms; clients send every 20 ms, which makes the oldest "
            "sample of a result up to 20 ms older.\n"
        )
        yield f"{head}\n| --- | --- | --- | --- | --- | --- | --- |"
        yield row("as many as fit", clients, cores)
        twice, cores = measured(process, crowd(address, 2 * capacity, seconds))
        yield row("twice as many come", twice, cores)
        refused = [client for client in twice if client.refused]
    # Streams of one step and one sample, of which several fit: those that misbehave take places of theirs
    with server("auto", "--steps", "1", "--samples", "1") as (address, process, several):
        few = max(1, several - 2)
        clients, cores = measured(process, crowd(address, few, seconds))
        yield row("lighter streams (1)", clients, cores)

        async def disturbed() -> tuple[list[Client], list[str]]:
            clients, *said = await asyncio.gather(
                crowd(address, few, seconds), slow_reader(address, seconds), malformed(address, seconds)
            )
            return clients, said

        (clients, said), cores = measured(process, disturbed())
        yield row("the same beside clients that misbehave (2)", clients, cores)

        async def pressed() -> tuple[list[Client], str]:
            return await asyncio.gather(crowd(address, few, seconds), fast_sender(address, seconds))

        (clients, fast), cores = measured(process, pressed())
        yield row("the same beside one that sends too fast (3)", clients, cores)
        yield (
            f"\n(1) One step and one sample: {several} fit, and those that misbehave take two places. "
            f"(2) {'; '.join(said)}. (3) {fast}.\n"
        )
    if refused:
        slowest = 1000 * max(client.refused_after for client in refused)
        yield f"Those that were refused were told so within {slowest:.0f} ms: `{refused[0].refused}`.\n"
    with server("auto") as (address, process, _):
        asyncio.run(come_and_go(address, 50))
        _, memory, files = usage(process)
        grown, took = [memory], 0.0
        for _ in range(2):  # what a server keeps of its memory, it takes in the first of them
            took += asyncio.run(come_and_go(address, cycles))
            time.sleep(1)
            grown.append(usage(process)[1])
        yield (
            f"{2 * cycles} connections that come and go: {took:.0f} s, memory {grown[1] - grown[0]:+.1f} MiB in the "
            f"first half of them and {grown[2] - grown[1]:+.1f} in the second, of {grown[2]:.0f}, open files "
            f"{usage(process)[2] - files:+d}.\n"
        )
    yield "## Without a limit\n\nWhat clients would see if the server let everybody in:\n"
    yield f"{head}\n| --- | --- | --- | --- | --- | --- | --- |"
    for count in sorted({1, max(1, capacity // 2), capacity, max(2, 3 * capacity // 2), 2 * capacity, 3 * capacity}):
        with server(str(10 * capacity)) as (address, process, _):
            clients, cores = measured(process, crowd(address, count, seconds))
            yield row(f"{count} streams", clients, cores)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each crowd (default: %(default)s)")
    parser.add_argument("--cycles", type=int, default=1000, help="connections that come and go (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = [
        "# Serving\n\nMade with `python benchmarks/serving.py`: server and clients on one machine, "
        f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, version {udse_fast.__version__}, "
        f"{arguments.seconds:g} s of each crowd.\n"
    ]
    for line in report(arguments.seconds, arguments.cycles):
        print(line, flush=True)
        lines.append(line)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
