"""Measure the cost of the door: time added to a request and to a stream's first chunk, and how fast streams pass.

    python -m benchmarks.door [--json] [--requests N]

The floor is the same client asking the same loopback upstream directly, in turn with the requests through the door, so
that noise hits both. Client, door and upstream are three processes, as they are when they work. The door checks, masks,
meters and prices each answer; its journal is a list in memory, so that the journal's own time is not counted here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from benchmarks._figures import Figures
from hiveyard.core.events import DoorEvent, Notice
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.secret import Secret

KEY = "sk-benchmark-0123456789"
USAGE = {"input_tokens": 1000, "output_tokens": 50, "cache_read_input_tokens": 9000}
WHOLE = json.dumps(
    {
        "type": "message",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": "word " * 100}],
        "usage": USAGE,
    }
).encode()
DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'
    + b"word " * 20
    + b'"}}\n\n'
)
ASK = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": [{"role": "user", "content": "word " * 2000}]}
STREAM_BYTES = 32 << 20
OPENED = 50


async def upstream() -> None:
    """Answers at once: whole, with one event and then the rest, or with very many events."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        print(listener.extra(SocketAttribute.local_port), flush=True)
        await listener.serve(_serve)


async def _serve(stream: SocketStream) -> None:
    buffered = BufferedByteReceiveStream(stream)
    async with stream:
        while True:
            try:
                head = await buffered.receive_until(b"\r\n\r\n", 1 << 16)
            except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
                return
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await buffered.receive_exactly(length)
            if b'"stream": true' not in body:
                await stream.send(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(WHOLE), WHOLE)
                )
                continue
            await stream.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            chunk = DELTA * (1 if b'"short"' in body else 256)
            piece = b"%x\r\n%b\r\n" % (len(chunk), chunk)
            for _ in range(1 if b'"short"' in body else STREAM_BYTES // len(chunk)):
                await stream.send(piece)
            await stream.send(b"0\r\n\r\n")


async def door(url: str, directory: Path) -> None:
    """Opens many doors to measure that, then holds one open."""

    async def record(_session: str, _turn: int | None, event: DoorEvent | Notice) -> None:
        events.append(event)

    events: list[DoorEvent | Notice] = []
    settings = DoorSettings(anthropic_upstream=url)
    async with Doors(settings, Keys({"ANTHROPIC_API_KEY": KEY}), record) as doors:
        opening, closing = [], []
        for number in range(OPENED):
            begun = time.perf_counter()
            async with doors.open(session="s", directory=directory / str(number), placeholder=Secret(KEY)):
                opening.append(time.perf_counter() - begun)
                begun = time.perf_counter()
            closing.append(time.perf_counter() - begun)
        async with doors.open(session="s", directory=directory, placeholder=Secret(KEY)):
            print(json.dumps([opening, closing]), flush=True)
            await anyio.sleep_forever()


class Connection(http.client.HTTPConnection):
    """To a TCP port, or to a unix socket."""

    def __init__(self, where: int | Path) -> None:
        super().__init__("127.0.0.1", where if isinstance(where, int) else 80)
        self._where = where

    def connect(self) -> None:
        if isinstance(self._where, int):
            super().connect()
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._where))


class Client:
    """One guest with one kept connection; the path tells whether it stands before the door."""

    def __init__(self, where: int | Path) -> None:
        self._path = "/v1/messages" if isinstance(where, int) else "/anthropic/v1/messages"
        self._connection = Connection(where)
        self.failures = 0

    def whole(self) -> float:
        return self._timed(ASK, first=False)

    def first_chunk(self) -> float:
        return self._timed(ASK | {"stream": True, "metadata": "short"}, first=True)

    def throughput(self) -> float:
        return self._timed(ASK | {"stream": True}, first=False)

    def _timed(self, ask: object, *, first: bool) -> float:
        body = json.dumps(ask).encode()
        begun = time.perf_counter()
        self._connection.request("POST", self._path, body, {"x-api-key": KEY, "content-type": "application/json"})
        answer = self._connection.getresponse()
        answer.read(1)
        elapsed = time.perf_counter() - begun
        while answer.read(1 << 20):
            pass
        self.failures += answer.status != 200
        return elapsed if first else time.perf_counter() - begun


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    """One of the other two processes, and the first line that it says."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.door", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline()
    finally:
        process.terminate()
        process.communicate()


def measure(figures: Figures, doors: Sequence[Sequence[float]], port: int, path: Path, requests: int) -> None:
    figures.times("open a door", doors[0], aim="below 5 ms")
    figures.times("close a door", doors[1])
    direct, through = Client(port), Client(path)
    for name in ("whole", "first_chunk"):
        times: dict[Client, list[float]] = {direct: [], through: []}
        for number in range(requests + 50):
            for client in (direct, through):
                took = getattr(client, name)()
                if number >= 50:  # the first ones find caches cold
                    times[client].append(took)
        label = {"whole": "whole answer", "first_chunk": "first chunk of a stream"}[name]
        figures.times(f"{label}, direct (floor)", times[direct], failures=direct.failures)
        figures.times(f"{label}, through the door", times[through], failures=through.failures)
        added = [t - d for t, d in zip(sorted(times[through]), sorted(times[direct]), strict=True)]
        figures.times(f"{label}, added", added, aim="p50 below 5 ms")
    for label, client in (("direct (floor)", direct), ("through the door", through)):
        elapsed = min(client.throughput() for _ in range(3))
        figures.rate(f"one stream of small events, {label}", STREAM_BYTES >> 20, elapsed, unit="MiB/s")
    with ThreadPoolExecutor(8) as pool:
        for label, where in (("direct (floor)", port), ("through the door", path)):
            clients = [Client(where) for _ in range(8)]
            begun = time.perf_counter()
            list(pool.map(lambda client: [client.whole() for _ in range(requests // 8)], clients))
            elapsed = time.perf_counter() - begun
            failures = sum(client.failures for client in clients)
            figures.rate(f"requests, 8 at once, {label}", requests // 8 * 8, elapsed, failures=failures)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the door.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--door", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        return anyio.run(upstream)
    if options.door:
        return anyio.run(door, options.door[0], Path(options.door[1]))
    figures = Figures("door")
    with tempfile.TemporaryDirectory(prefix="hv-bench-") as name, running("--upstream") as port:
        directory, url = Path(name), f"http://127.0.0.1:{port.strip()}"
        with running("--door", url, name) as opened:
            measure(figures, json.loads(opened), int(port), directory / "door.sock", options.requests)
    figures.show(as_json=options.json)
    return None


if __name__ == "__main__":
    main()
