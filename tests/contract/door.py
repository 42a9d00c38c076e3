"""Run a small HTTP server on a door's socket in a thread, and send requests to it with bash alone."""

from __future__ import annotations

import http.server
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio

from hiveyard.core.commands import Command
from hiveyard.core.machines import Capabilities
from hiveyard.core.ports import Guest

_FULL = r"""
exec 8<> <(:)
rest() { read -r -t "$1" -u 8; }
room() {
  for at in /proc/[0-9]*; do
    { read -r name <"$at/comm"; } 2>/dev/null && [[ $name == sleep ]] && kill -9 "${at#/proc/}"
  done
}
( trap 'exec sleep 7654322' EXIT; while :; do sleep 7654322 & done ) >/dev/null 2>&1 8<&- &
until read -r name </proc/$!/comm; [[ $name == sleep ]]; do rest 0.1; done
trap room EXIT
exec 3<>/dev/tcp/127.0.0.1/8377
read -r -u 3  # until the reader is gone: one process fewer
rest 0.05
sleep 7654322 >/dev/null 2>&1 8<&- 3<&- &
rest 20
exit 0
"""
_TOO_LATE = 254  # process 1 was faster: nothing was tested


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[object, tuple[str, int]]:  # type: ignore[override]
        # The HTTP handler needs a peer's address; a unix socket has none.
        request, _ = super().get_request()
        return request, ("door", 0)


@contextmanager
def serve_door(directory: Path, answer: str) -> Iterator[None]:
    """Answer every GET on `door.sock` with a text during the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"{answer} {self.path}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Write no access log."""

    with _served(directory, Handler):
        yield


@contextmanager
def broken_door(directory: Path) -> Iterator[None]:
    """Close every connection on `door.sock` after the first data, without reading it, during the block."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1, socket.MSG_PEEK)

    with _served(directory, Handler):
        yield


@contextmanager
def _served(directory: Path, handler: type[socketserver.BaseRequestHandler]) -> Iterator[None]:
    path = directory / "door.sock"
    path.unlink(missing_ok=True)
    with _Server(str(path), handler) as server:
        path.chmod(0o666)  # like the real door: machines run as other users
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


def ask(capabilities: Capabilities, path: str) -> Command:
    """Return a command that prints the complete HTTP answer of the door."""
    return get(*_address(capabilities.door_url), path)


def get(host: str, port: int, path: str = "/") -> Command:
    script = (
        'exec 3<>"/dev/tcp/$1/$2" || exit 7; printf \'GET %s HTTP/1.0\\r\\nHost: door\\r\\n\\r\\n\' "$3" >&3; cat <&3'
    )
    return Command(argv=("bash", "-c", script, "get", host, str(port), path))


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return parts.hostname, parts.port or 80


async def outlive_a_full_table(guest: Guest, capabilities: Capabilities, answer: bytes) -> None:
    """Fill the machine's process table, connect to its door, wait for longer than bash tries to fork, and end the other
    processes. Then the door answers again."""
    while (done := await guest.run(Command(shell=_FULL), timeout=120)).status == _TOO_LATE:
        pass
    assert done.ok, done
    with anyio.fail_after(60):
        while not (await guest.run(ask(capabilities, "/later"))).stdout.endswith(answer + b" /later"):  # noqa: ASYNC110
            await anyio.sleep(0.2)
