"""Requests over a unix socket, for tools that speak HTTP through `requests`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

BASE = "http://daemon"


def session(path: Path) -> requests.Session:
    """A session of which every request to BASE goes to the socket."""
    made = requests.Session()
    made.trust_env = False
    made.mount(BASE, _Adapter(path))
    return made


class _Connection(HTTPConnection):
    path: Path

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(self.path))
        return connection


class _Adapter(HTTPAdapter):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = HTTPConnectionPool("daemon")
        self._pool.ConnectionCls = type("Connection", (_Connection,), {"path": path})

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()
