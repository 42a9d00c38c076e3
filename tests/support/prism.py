"""Prism between a client and a server: every request and answer is held against an OpenAPI description."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC_VARIABLE = "HIVEYARD_MORPH_SPEC"


def morph_spec() -> Path | None:
    """The service's own description, which is not ours to copy: where the variable says, or beside the checkout."""
    place = Path(os.environ.get(SPEC_VARIABLE) or ROOT.parent / "shared/specs/morph.openapi.json")
    return place if place.is_file() else None


@contextmanager
def proxied(spec: Path, upstream: str) -> Iterator[tuple[str, Path]]:
    """The address of a proxy before `upstream`, and what it logs. What breaks the description is an error 4xx or 5xx
    in place of the answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="hv-prism-") as scratch:
        log = Path(scratch, "log")
        argv = [
            str(ROOT / "scripts/prism"),
            "proxy",
            "--errors",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            str(spec),
            upstream,
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            _until_listening(process, port, log)
            yield f"http://127.0.0.1:{port}", log
        finally:
            process.terminate()
            process.wait()


def faults(log: Path) -> list[str]:
    """Return the faults that Prism found. Not every line with an "error" is one: it makes up paths at random."""
    return [line for line in log.read_text().splitlines() if "✖" in line]


def _until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
