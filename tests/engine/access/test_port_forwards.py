"""Open, keep and close the ports of one machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import BadInput, PortTaken
from hiveyard.core.ports import Guest
from hiveyard.engine.access.host_ports import HostPorts, Owner
from hiveyard.engine.access.port_forwards import SSH, port_forwards
from hiveyard.engine.access.ssh_keys import SshKeys
from hiveyard.engine.settings import PortSettings
from tests.contract.conftest import Place
from tests.engine.access.test_forwarding import PATIENCE, ask, served
from tests.engine.access.test_host_ports import free

pytestmark = pytest.mark.anyio
RANGE = PortSettings(first=42000, last=42100)


async def refused(port: int) -> bool:
    try:
        await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
    except OSError:
        return True
    return False


async def test_ports_are_opened_reopened_and_closed(shared: Place, guest: Guest, tmp_path: Path) -> None:
    ports, keys = HostPorts(tmp_path / "ports"), SshKeys(tmp_path / "keys").of("s1")
    provider = shared.offer.provider
    previous = free()
    async with (
        served(guest, 8300, "wc -c"),
        port_forwards(Owner("s1", "anna"), provider, shared.name, ports, keys) as anna,
    ):
        ssh = await anna.open_ssh(RANGE)
        assert ssh in range(42000, 42101)
        web = await anna.open(8300, previous=previous)
        assert (web, await anna.open(8300)) == (previous, previous)
        assert anna.opened == {SSH: ssh, 8300: previous}
        with anyio.fail_after(PATIENCE):
            assert await ask(web, b"123") == b"3\n"
        async with port_forwards(Owner("s2", "bert"), provider, shared.name, ports, keys) as bert:
            assert await bert.open_ssh(RANGE, previous=ssh) != ssh
            with pytest.raises(PortTaken, match="anna"):
                await bert.open(8300, wanted=web)
            with pytest.raises(BadInput):
                await bert.open(70000)
            assert list(bert.opened) == [SSH]
        other = free()
        assert (await anna.open(8300, wanted=other), await refused(web)) == (other, True)
        with anyio.fail_after(PATIENCE):
            assert await ask(other, b"12") == b"2\n"
        with pytest.raises(PortTaken):
            await anna.open(8300, wanted=ssh)
        assert anna.opened[8300] == other, "what cannot be moved stays"
        await anna.close(8300)
        await anna.close(8300)
        for change in (anna.open, anna.close):
            with pytest.raises(BadInput, match="ssh port"):
                await change(SSH)
        assert await refused(web) and not await refused(ssh)
        assert await anna.open(8300, wanted=web) == web
    assert await refused(ssh) and await refused(web)


async def test_opening_the_same_port_twice_at_once_opens_one(shared: Place, tmp_path: Path) -> None:
    ports, keys = HostPorts(tmp_path / "ports"), SshKeys(tmp_path / "keys").of("s1")
    found = []
    async with port_forwards(Owner("s1", "anna"), shared.offer.provider, shared.name, ports, keys) as anna:

        async def one() -> None:
            found.append(await anna.open(8302))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(one)
        assert len(set(found)) == 1
        assert list(anna.opened.values()) == found[:1]
        await anna.close(8302)
        assert await refused(found[0])
        assert not list((tmp_path / "ports").glob("[0-9]*"))


async def test_an_error_in_the_block_closes_all_ports(shared: Place, tmp_path: Path) -> None:
    ports, keys = HostPorts(tmp_path / "ports"), SshKeys(tmp_path / "keys").of("s1")
    port = 0
    with contextlib.suppress(BaseExceptionGroup):
        async with port_forwards(Owner("s1", "anna"), shared.offer.provider, shared.name, ports, keys) as anna:
            port = await anna.open(8301)
            raise RuntimeError
    assert port and await refused(port)
    assert not list((tmp_path / "ports").glob("[0-9]*"))
