"""A tiny HTTP server on a door's socket, in a thread of its own, and how a guest asks it with nothing but bash."""

from __future__ import annotations

import http.server
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from hiveyard.core.commands import Command
from hiveyard.core.machines import Capabilities


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[object, tuple[str, int]]:  # type: ignore[override]
        # The HTTP handler wants to know a peer's address; a unix socket has none.
        request, _ = super().get_request()
        return request, ("door", 0)


@contextmanager
def serve_door(directory: Path, answer: str) -> Iterator[None]:
    """Answer every GET on `door.sock` with a text, for as long as the block lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"{answer} {self.path}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests read no access log."""

    path = directory / "door.sock"
    path.unlink(missing_ok=True)
    with _Server(str(path), Handler) as server:
        path.chmod(0o666)  # as the real door does: machines have users of their own
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


def ask(capabilities: Capabilities, path: str) -> Command:
    """A command that prints the whole HTTP answer of the door."""
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
