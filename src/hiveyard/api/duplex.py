"""The client's side of a command in a guest, with the standard library only. The frames are those of
engine/access/exec_channel.py."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

from hiveyard.api.client import ApiError, broken_off
from hiveyard.core.errors import DaemonUnreachable

_HEAD = struct.Struct(">cI")
_FRAME_LIMIT = 64 << 20


class Duplex:
    """A request whose body is sent while its answer arrives. Use it with `with`: leaving early kills the command."""

    def __init__(self, daemon: Path, path: str, begin: bytes = b"") -> None:
        """Send the head of a POST to `path`, which includes the query, and then `begin`, which comes before the
        command's stdin. Raises DaemonUnreachable."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(daemon))
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._socket.sendall(head.encode())
        except OSError as error:
            self._socket.close()
            raise DaemonUnreachable(f"no daemon answers on {daemon}: {error}", hint="hv serve") from error
        self._response: http.client.HTTPResponse | None = None
        with contextlib.suppress(OSError):  # a refused request has its answer already
            self._send(begin)

    def __enter__(self) -> Duplex:
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown: a feeding thread may hold the socket.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._response is not None:
            self._response.close()
        self._socket.close()

    def feed(self, pieces: Iterable[bytes]) -> None:
        """Send the command's stdin to its end. Input that it does not read is dropped."""
        try:
            for piece in pieces:
                self._send(piece)
            self._socket.sendall(b"0\r\n\r\n")
        except OSError:
            return

    def _send(self, piece: bytes) -> None:
        if piece:
            self._socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))

    def feed_beside(self, pieces: Iterable[bytes]) -> None:
        """Feed from a thread, which may stay behind while it waits for a terminal."""
        threading.Thread(target=self.feed, args=(pieces,), daemon=True).start()

    def next(self) -> tuple[bytes, bytes]:
        """Return the next frame: its letter and its content. Raises ApiError when the last frame says that the command
        did not run to its end, DaemonUnreachable when the connection broke."""
        try:
            head = self._exactly(_HEAD.size)
            letter, length = _HEAD.unpack(head)
            if length > _FRAME_LIMIT:
                raise http.client.HTTPException("a frame that is too long")
            data = self._exactly(length)
        except (OSError, http.client.HTTPException, struct.error) as error:
            raise DaemonUnreachable(f"{broken_off(error)} before the command did: its exit code is unknown") from error
        if letter == b"!":
            error_data = json.loads(data)
            raise ApiError(error_data["code"], error_data["message"], error_data["hint"])
        return letter, data

    def _exactly(self, length: int) -> bytes:
        if self._response is None:
            self._response = http.client.HTTPResponse(self._socket, method="POST")
            self._response.begin()
            if self._response.status >= 400:
                self._refused(self._response.read())
        data = b""
        while len(data) < length:
            piece = self._response.read(length - len(data))
            if not piece:
                raise http.client.IncompleteRead(data, length - len(data))
            data += piece
        return data

    def _refused(self, data: bytes) -> None:
        try:
            error = json.loads(data)["error"]
            raise ApiError(error["code"], error["message"], error.get("hint", ""))
        except (ValueError, KeyError, TypeError):
            raise DaemonUnreachable(f"the daemon answered {data[:200]!r}") from None
