"""Ports of this host that lead into sessions: kept over restarts, and used by others while a session is stopped."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.events import Notice
from hiveyard.engine.access.host_ports import Owner
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.settings import PortSettings
from tests.engine.access.test_host_ports import free
from tests.engine.conftest import Yard
from tests.engine.yards import events, run_turn, spawned, wait_until
from tests.support.puppet import NAME, register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_the_port_of_a_stopped_session_is_used_when_no_other_is_free(yard: Yard, repo: Path) -> None:
    port = free()
    yard.settings = replace(yard.settings, ports=PortSettings(first=port, last=port))
    async with yard.open() as engine:
        first = await spawned(engine, repo)
        assert (await engine.sessions.view(first)).port == port
        await engine.sessions.stop(first)
        with anyio.fail_after(60):
            second = await spawned(engine, repo)
        assert (await engine.sessions.view(second)).port == port
        await engine.sessions.resume(first)
        ended = await wait_until(engine, first, lambda view: view.status == "stopped")
        assert f"none of the ports {port} to {port} is free" in ended.reason
        await engine.sessions.stop(second)
        await engine.sessions.resume(first)
        await wait_until(engine, first, lambda view: view.status == "running")
        assert (await engine.sessions.view(first)).port == port
        await engine.sessions.stop(first)


async def test_a_session_whose_wanted_port_was_taken_continues_with_another(yard: Yard, repo: Path) -> None:
    """Two sessions were created with the same `--port` at once, and the other one got it."""
    port = free()
    async with yard.open() as engine:
        id = await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME, port=port))
        with socket.create_server(("127.0.0.1", port)):
            ended = await wait_until(engine, id, lambda view: view.status == "stopped")
            assert f"port {port} is taken by another program" in ended.reason
            await engine.sessions.resume(id)
            view = await wait_until(engine, id, lambda view: view.status == "running")
        assert view.port not in (None, port)
        await engine.sessions.stop(id)


async def test_opening_a_port_twice_at_once_opens_one_and_the_session_continues(yard: Yard, repo: Path) -> None:
    found = []
    async with yard.open() as engine:
        id = await spawned(engine, repo)

        async def one() -> None:
            found.append(await engine.access.open_port(id, 3000, None))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(one)
        assert found[0] == found[1]
        assert await engine.access.open_port(id, 3000, None) == found[0]
        await engine.access.close_port(id, 3000)
        held = await engine.snapshots._r.host_ports.reserve(Owner("x", "x"), wanted=found[0])
        await engine.snapshots._r.host_ports.release(held)
        assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        types = [event.body.type for event in await events(engine, id) if event.body.type.startswith("port.")]
        assert types == ["port.opened", "port.opened", "port.closed"]  # the first is the ssh port
        await engine.sessions.stop(id)


async def test_a_session_whose_port_is_in_use_gets_another(yard: Yard, repo: Path) -> None:
    port, other = sorted((free(), free()))
    yard.settings = replace(yard.settings, ports=PortSettings(first=port, last=port))
    async with yard.open() as engine:
        first = await spawned(engine, repo)
        await engine.sessions.stop(first)
        with anyio.fail_after(60):
            second = await spawned(engine, repo)
    yard.settings = replace(yard.settings, ports=PortSettings(first=port, last=other))
    async with yard.open() as engine:
        await wait_until(engine, second, lambda view: view.status == "running")
        await engine.sessions.resume(first)
        await wait_until(engine, first, lambda view: view.status == "running")
        ports = [(await engine.sessions.view(id)).port for id in (first, second)]
        assert ports[1] == port and ports[0] in range(port + 1, other + 1)
        for id in (first, second):
            await engine.sessions.stop(id)


async def test_a_running_session_continues_when_its_port_was_taken_meanwhile(yard: Yard, repo: Path) -> None:
    port = free()
    yard.settings = replace(yard.settings, ports=PortSettings(first=port, last=port))
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
    with socket.create_server(("127.0.0.1", port)):
        async with yard.open() as engine:
            assert await run_turn(engine, id, "recall") == "kept: apple"
            (notice,) = [event.body for event in await events(engine, id, "notice")]
            assert isinstance(notice, Notice)
            assert notice.code == "port.none_free"
            assert notice.message.startswith("not all of its ports could be opened again: none of the ports")
            await engine.sessions.stop(id)
