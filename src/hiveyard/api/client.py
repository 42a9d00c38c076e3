"""A client of the daemon. It uses only the standard library, because every `hv` pays for its imports."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from hiveyard.core.errors import BadInput, DaemonUnreachable, HiveyardError, OrchestrationError


class ApiError(HiveyardError):
    """An error that the daemon answered with; it has the code of that error."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code  # type: ignore[misc]


class DaemonSilent(OrchestrationError):
    """A daemon that runs and does not answer. No other can be started beside it."""

    code, retry = "daemon.silent", True


PATIENCE = 30.0
"""Seconds for the daemon to answer."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None = None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def peer(self) -> int:
        """Return the id of the process at the other end."""
        size = struct.calcsize("3i")
        return int(struct.unpack("3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0])


class Client:
    """Calls to the daemon on its socket. Each raises DaemonUnreachable, or ApiError with the daemon's error."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def alive(self, within: float = PATIENCE) -> bool:
        """Return whether a daemon runs. Raises DaemonSilent for one that does not answer `within` so many seconds."""
        connection = _Connection(self._path, within)
        try:
            connection.request("GET", "/v1/version")
            connection.getresponse().read()
        except (TimeoutError, BlockingIOError):  # or its queue of connections is full
            pid = connection.peer()
            raise DaemonSilent(
                f"the daemon on {self._path} has not answered for {within:g}s: it is stuck, or this host is very busy",
                hint=f"kill {pid if pid > 0 else 'it'}; tasks and sessions continue with the next daemon",
            ) from None
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def call(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """Send one request and return the decoded JSON answer."""
        connection, response = self._send(method, path, body, query)
        try:
            return json.loads(self._checked(response))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DaemonUnreachable(f"{broken_off(error)} before its answer was complete", hint="hv ps -a") from error
        finally:
            connection.close()

    def listing(self, path: str, **query: object) -> tuple[Any, int]:
        """Return a list, and the number of the last event that it is based on."""
        connection, response = self._send("GET", path, None, query)
        try:
            return json.loads(self._checked(response)), int(response.headers.get("Hiveyard-Seq", 0))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DaemonUnreachable(f"{broken_off(error)} before its answer was complete", hint="hv ps -a") from error
        finally:
            connection.close()

    def stream(self, method: str, path: str, body: object = None, **query: object) -> Iterator[Any]:
        """Yield the decoded messages of an event stream up to its end. Raises DaemonUnreachable when it is cut."""
        connection, response = self._send(method, path, body, query)
        try:
            if response.status >= 400:
                self._checked(response)
            for line in response:
                if line.startswith(b"data: ") and (data := line[6:].strip()) != b"{}":
                    yield json.loads(data)
                elif line.startswith(b"event: end"):
                    return
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachable(f"{broken_off(error)} before its answer was complete", hint="hv ps -a") from error
        finally:
            connection.close()
        raise DaemonUnreachable("the daemon ended before its answer was complete", hint="hv ps -a")

    def _send(
        self, method: str, path: str, body: object, query: dict[str, object]
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        encoded = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
        url = path + ("?" + urlencode(encoded, doseq=True, errors="surrogateescape") if encoded else "")
        connection = _Connection(self._path)
        try:
            connection.request(
                method,
                url,
                None if body is None else json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _no_answer(self._path, error) from error

    def _checked(self, response: http.client.HTTPResponse) -> bytes:
        data = response.read()
        if response.status < 400:
            return data
        try:
            error = json.loads(data)["error"]
            raise ApiError(error["code"], error["message"], error.get("hint", ""))
        except (ValueError, KeyError, TypeError):
            raise ApiError("internal", f"the daemon answered {response.status}: {data[:200]!r}", "") from None


def _no_answer(path: Path, error: Exception) -> DaemonUnreachable:
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return DaemonUnreachable(f"{broken_off(error)} before it answered", hint="hv ps -a")
    return DaemonUnreachable(f"no daemon answers on {path}: {error}", hint="hv serve")


def broken_off(error: Exception) -> str:
    """Return how a connection to the daemon broke. Python's own words for a closed connection say nothing to a user."""
    closed = (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionError)
    if isinstance(error, closed) or not str(error):
        return "the daemon ended"
    return f"the connection to the daemon broke ({error})"


def quoted(ref: str) -> str:
    """Return a name as one part of a URL path. Raises BadInput for an empty one: nothing has that name."""
    if not ref:
        raise BadInput("the name is empty", hint="hv list -a, or hv ps -a")
    return quote(ref, safe="", errors="surrogateescape")
