"""Ports of this host that lead into sessions, kept and lent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.engine.settings import PortSettings
from tests.engine.conftest import Yard
from tests.engine.yards import spawned, until
from tests.support.puppet import register
from tests.ways.test_host_ports import free

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_the_port_of_a_stopped_session_is_taken_when_no_other_is_free(yard: Yard, repo: Path) -> None:
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
        ended = await until(engine, first, lambda view: view.status == "stopped")
        assert f"none of the ports {port} to {port} is free" in ended.reason
        await engine.sessions.stop(second)
        await engine.sessions.resume(first)
        await until(engine, first, lambda view: view.status == "running")
        assert (await engine.sessions.view(first)).port == port
        await engine.sessions.stop(first)


async def test_a_session_whose_port_was_lent_gets_another(yard: Yard, repo: Path) -> None:
    port, other = sorted((free(), free()))
    yard.settings = replace(yard.settings, ports=PortSettings(first=port, last=port))
    async with yard.open() as engine:
        first = await spawned(engine, repo)
        await engine.sessions.stop(first)
        with anyio.fail_after(60):
            second = await spawned(engine, repo)
    yard.settings = replace(yard.settings, ports=PortSettings(first=port, last=other))
    async with yard.open() as engine:
        await until(engine, second, lambda view: view.status == "running")
        await engine.sessions.resume(first)
        await until(engine, first, lambda view: view.status == "running")
        ports = [(await engine.sessions.view(id)).port for id in (first, second)]
        assert ports[1] == port and ports[0] in range(port + 1, other + 1)
        for id in (first, second):
            await engine.sessions.stop(id)
