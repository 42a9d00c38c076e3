"""Join this terminal to a new one in a container.

`python terminal.py SOCKET API CONTAINER USER TOKEN N WORD{N} ARGUMENT...`: the N words are what every program in the
container begins with.

It uses the engine's API itself, because the engine may be Podman and there may be no `docker` program. It imports
nothing of the package that takes long.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import sys
import time
from collections.abc import Sequence

from hiveyard.machines.shared.scripts import HANG_UP
from hiveyard.machines.shared.terminal import HungUp, Size, join, size_of

_REFUSED = 125
_EXIT_CODE_TIMEOUT = 5.0  # seconds for the engine to learn the exit code of a program that has ended
# ROWS COLUMNS ARGUMENT...: a new terminal has no size (before API 1.42 an engine cannot set one). The engine accepts a
# size only when the program has started, which may have read the size by then.
_SIZED = 'stty rows "$1" cols "$2"; shift 2; exec "$@"'


def program(
    socket_path: str, api: str, container: str, user: str, token: str, argv: Sequence[str], prefix: Sequence[str]
) -> list[str]:
    """Return the argv that runs `argv` on a terminal in a container.

    `api` is the version of the engine's API as a path. `token` is in the environment of the program. `prefix` are the
    first words of every program in the container."""
    here = [sys.executable, "-P", __file__, socket_path, api, container, user, token]
    return [*here, str(len(prefix)), *prefix, *argv]


def main(argv: Sequence[str]) -> int:
    socket_path, api, container, user, token, count, *words = argv
    prefix, words = words[: int(count)], words[int(count) :]
    engine = _Engine(socket_path, api)
    try:
        rows, columns = size_of(0)
        sized = [*prefix, "bash", "-c", _SIZED, "hv", str(rows), str(columns), *words]
        run = engine.create(container, user, sized, terminal=True)
        connection = engine.start(run)
    except (OSError, _RefusedError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return _REFUSED
    try:
        join(connection.fileno(), lambda size: engine.resize(run, size))
    except HungUp:
        # The engine keeps a terminal without a connection, and reports no end while output waits to be read.
        connection.close()
        with contextlib.suppress(OSError, _RefusedError):
            hang_up = [*prefix, "bash", "-c", HANG_UP, "hv", token]
            engine.start(engine.create(container, user, hang_up, terminal=False)).recv(1)
        return 128 + signal.SIGHUP
    return engine.exit_code(run)


class _RefusedError(Exception):
    """The engine refused a request; the message is its own."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class _Engine:
    """The few requests that a terminal needs."""

    def __init__(self, path: str, api: str) -> None:
        self._path = path
        self._api = api

    def create(self, container: str, user: str, argv: Sequence[str], *, terminal: bool) -> str:
        body = {"AttachStdin": terminal, "AttachStdout": True, "AttachStderr": True, "Tty": terminal, "User": user}
        return str(self._call("POST", f"/containers/{container}/exec", body | {"Cmd": list(argv)})["Id"])

    def start(self, run: str) -> socket.socket:
        """Return the connection, which is upgraded from HTTP to the terminal's input and output."""
        body = json.dumps({"Detach": False, "Tty": True}).encode()
        head = f"POST {self._api}/exec/{run}/start HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(self._path)
        stream.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        # Byte by byte: the program's output follows the head.
        while not answer.endswith(b"\r\n\r\n") and (byte := stream.recv(1)):
            answer += byte
        if answer[9:12] not in (b"101", b"200"):
            raise _RefusedError(f"the container engine refused: {stream.recv(4096).decode(errors='replace').strip()}")
        return stream

    def resize(self, run: str, size: Size) -> None:
        # The engine refuses while the program has not quite started, or has ended.
        for _ in range(5):
            with contextlib.suppress(_RefusedError, OSError):
                self._call("POST", f"/exec/{run}/resize?h={size.rows}&w={size.columns}", None)
                return
            time.sleep(0.02)

    def exit_code(self, run: str) -> int:
        until = time.monotonic() + _EXIT_CODE_TIMEOUT
        while time.monotonic() < until:
            with contextlib.suppress(_RefusedError, OSError):
                seen = self._call("GET", f"/exec/{run}/json", None)
                if not seen.get("Running") and isinstance(code := seen.get("ExitCode"), int):
                    return code
            time.sleep(0.02)
        return 128 + signal.SIGKILL

    def _call(self, method: str, path: str, body: object) -> dict[str, object]:
        connection = _Connection(self._path)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._api + path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except http.client.HTTPException as error:
            raise _RefusedError(f"the container engine does not answer: {error}") from error
        finally:
            connection.close()
        answer = json.loads(text) if text[:1] == b"{" else {}
        if response.status >= 400:
            raise _RefusedError(f"the container engine refused: {answer.get('message', response.status)}")
        return dict(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
