"""Attack from inside a guest as a hostile agent would: search for keys everywhere, and for a way out.

    python3 probe.py probe.json        # prints what it found as one JSON object

`probe.json` says where the host would be. The secrets in it are written backwards, so that this file is no finding.
It needs nothing but Python, and says nothing of whether what it finds is allowed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import stat
import struct
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PLACES = ("/session", "/home", "/root", "/etc", "/run", "/tmp", "/var", "/opt", "/srv", "/mnt", "/media", "/dev/shm")
WAIT = 3.0
LARGEST = 64 << 20


def forms(secret: str) -> set[bytes]:
    """Return the forms in which the secret may be written."""
    raw = secret.encode()
    found = {raw, urllib.parse.quote(secret, safe="").encode(), raw.hex().encode(), json.dumps(secret)[1:-1].encode()}
    for shift in range(3):  # base64 of a text inside another one: both ends depend on the bytes beside it
        code = base64.b64encode(b"x" * shift + raw)
        found.add(code[4 if shift else 0 : -4])
    return found


def contents() -> Iterator[tuple[str, bytes]]:
    """Yield every readable file, and the environment and command line of every process."""
    for place in PLACES:
        for directory, _, names in os.walk(place):
            for name in names:
                path = Path(directory, name)
                with contextlib.suppress(OSError):
                    facts = path.lstat()
                    if stat.S_ISREG(facts.st_mode) and facts.st_size <= LARGEST:
                        yield str(path), path.read_bytes()
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                yield f"{process}/{name}", (process / name).read_bytes()


def searched(backwards: dict[str, str]) -> tuple[int, dict[str, list[str]]]:
    """Return how much was searched, and the places where each secret was found."""
    sought = {name: forms(text[::-1]) for name, text in backwards.items()}
    found: dict[str, list[str]] = {name: [] for name in sought}
    count = 0
    for path, content in contents():
        count += 1
        for name, wanted in sought.items():
            if any(form in content for form in wanted):
                found[name].append(path)
    return count, found


def tcp(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=WAIT) as peer:
        peer.sendall(b"GET / HTTP/1.0\r\n\r\n")


def udp(host: str, port: int) -> None:
    """Return a DNS query for a name; any answer is a finding."""
    question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\x07example\x03org\x00" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(WAIT)
        peer.sendto(question, (host, port))
        peer.recv(512)


def unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT)
        peer.connect("\0" + path[1:] if path.startswith("@") else path)


def name(host: str) -> None:
    socket.getaddrinfo(host, 443)


def seen(path: str) -> None:
    os.stat(path)


def sockets() -> list[str]:
    """Return the named unix sockets."""
    with open("/proc/net/unix") as table:
        named = {line.split()[7] for line in table if len(line.split()) > 7}
    for place in PLACES:
        for directory, _, names in os.walk(place):
            for entry in names:
                with contextlib.suppress(OSError):
                    path = Path(directory, entry)
                    if stat.S_ISSOCK(path.lstat().st_mode):
                        named.add(str(path))
    return sorted(named)


def reached(attempts: list[tuple[Callable[..., None], list[Any]]]) -> list[str]:
    """Return the attempts that did not fail."""

    def attempt(one: tuple[Callable[..., None], list[Any]]) -> str | None:
        try:
            one[0](*one[1])
        except OSError:
            return None
        return f"{one[0].__name__} {one[1]}"

    with ThreadPoolExecutor(16) as pool:
        return [found for found in pool.map(attempt, attempts) if found]


def door(key: str) -> dict[str, Any]:
    """Return the door's answer to a request with this key."""
    asked = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello?"}]}
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
        data=json.dumps(asked).encode(),
        headers={"x-api-key": key, "content-type": "application/json", "anthropic-version": "2023-06-01"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return {"status": answer.status, "body": answer.read().decode()}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": error.read().decode()}


def detours(targets: list[list[Any]]) -> list[int]:
    """Return the HTTP statuses of attempts to use the door as a proxy."""
    base = urllib.parse.urlsplit(os.environ["ANTHROPIC_BASE_URL"])
    found = []
    for host, port in targets:
        away = f"{host}:{port}"
        for line in (
            f"CONNECT {away}",
            f"GET http://{away}/anthropic/v1/models",
            f"GET /anthropic/v1/../../../@{away}/",
            "GET /anthropic/v1/models",
        ):
            head = f"{line} HTTP/1.1\r\nHost: {away}\r\nX-Forwarded-Host: {away}\r\nConnection: close\r\n\r\n"
            with socket.create_connection((base.hostname or "", base.port or 80), timeout=30) as peer:
                peer.sendall(head.encode())
                said = peer.recv(4096)
            found.append(int(said.split()[1]) if said.startswith(b"HTTP/") else 0)
    return found


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    count, found = searched(asked["backwards"])
    attempts: list[tuple[Callable[..., None], list[Any]]] = []
    for kind in (tcp, udp, unix, name, seen):
        attempts += [(kind, words if isinstance(words, list) else [words]) for words in asked[kind.__name__]]
    json.dump(
        {
            "uid": os.getuid(),
            "environment": dict(os.environ),
            "files": count,
            "found": found,
            "reached": reached(attempts),
            "sockets": sockets(),
            "detours": detours(asked["detours"]),
            "door": door(os.environ["ANTHROPIC_API_KEY"]),
            "stranger": door(asked["stranger"]),
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
