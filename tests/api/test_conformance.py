"""Requests to a real daemon that no tool derives from the OpenAPI document."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from hiveyard.api.client import ApiError, Client
from hiveyard.api.streams import progress_lines
from hiveyard.core.machines import HOST, Image, Report
from tests.cli.conftest import Hv, hv, shared_home
from tests.engine.conftest import repo

__all__ = ["hv", "repo", "shared_home"]


def client(hv: Hv) -> Client:
    hv.json("ps")
    return Client(hv.home / "run" / "api.sock")


def raw(hv: Hv, request: bytes) -> bytes:
    """Send these bytes and return the complete answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(hv.home / "run" / "api.sock"))
        connection.settimeout(30)
        connection.sendall(request.replace(b"host: x\r\n", b"host: x\r\nconnection: close\r\n"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("HEAD", "/v1/version", b"", 405),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v1/tasks/", b"", 404),
        ("GET", "/v1/tasks/a%2Fb", b"", 404),
        ("POST", "/v1/tasks", b"{", 400),
        ("POST", "/v1/tasks", b'{"repo": "/r", "prompt": "\\udcff"}', 400),
        ("POST", "/v1/tasks", b'{"repo": "/r", "prompt": "p", "budget_usd": 0}', 400),
        ("POST", "/v1/tasks", b'{"repo": "/r", "prompt": "p", "timeout": NaN}', 400),
    ],
)
def test_an_invalid_request_is_answered_with_a_problem(
    hv: Hv, method: str, path: str, body: bytes, status: int
) -> None:
    hv.json("ps")
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    answer = raw(hv, head.encode() + body)
    assert int(answer.split()[1]) == status
    if method != "HEAD":
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"].startswith(("bad_input", "not_found"))


def test_a_body_without_end_is_cut(hv: Hv) -> None:
    with pytest.raises(ApiError):
        client(hv).call("POST", "/v1/tasks", {"repo": "/r", "prompt": "x" * (70 << 20)})
    assert client(hv).call("GET", "/v1/tasks") == []


def test_a_stream_of_a_task_that_is_removed_ends(hv: Hv, repo: Path) -> None:
    api = client(hv)
    asked = {"repo": str(repo), "prompt": "x", "agent": "command", "command": "echo x; sleep 600"}
    id = api.call("POST", "/v1/tasks", asked)["id"]
    seen: list[str] = []
    reader = threading.Thread(
        target=lambda: seen.extend(
            event["body"]["type"] for event in api.stream("GET", f"/v1/tasks/{id}/events", follow=True)
        )
    )
    reader.start()
    assert hv("rm", "-f", id).returncode == 0
    reader.join(30)
    assert not reader.is_alive()


@pytest.mark.anyio
async def test_a_slow_reader_of_a_build_does_not_fail_the_build() -> None:
    async def work(report: Report) -> Image:
        for number in range(5000):
            report(f"line {number}")
        await anyio.lowlevel.checkpoint()
        return HOST

    async def read(lines: AsyncIterator[str]) -> list[str]:
        return [line async for line in lines]

    found = await read(progress_lines(work))
    assert '"id":"host"' in found[-2]
    assert found[-1].startswith("event: end")


@pytest.mark.anyio
async def test_leaving_a_build_cancels_it() -> None:
    cancelled = anyio.Event()

    async def work(report: Report) -> Image:
        report("begun")
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()
        return HOST

    lines = progress_lines(work)
    assert "begun" in await anext(lines)
    await lines.aclose()
    assert cancelled.is_set()


def test_events_are_selected_by_their_type_and_by_their_session(hv: Hv, repo: Path) -> None:
    api = client(hv)
    ids = [hv.json("run", str(repo), "-m", "x", "--command", "echo x > x")["id"] for _ in range(2)]

    def selected(**query: object) -> set[tuple[str, str]]:
        return {(one["session"], one["body"]["type"]) for one in api.stream("GET", "/v1/events", **query)}

    assert {(id, "task.completed") for id in ids} <= selected(type=["task.completed"])
    assert {id for id, _ in selected(session=[ids[0]])} == {ids[0]}
    assert selected(type=["task.completed"], session=[ids[0]]) == {(ids[0], "task.completed")}
