"""Reserve ports of this host beside other programs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import BadInput, NoFreePort, OrchestrationError, PortTaken
from hiveyard.engine.access.host_ports import HostPorts, Owner
from hiveyard.engine.settings import PortSettings

pytestmark = pytest.mark.anyio
ANNA, BERT = Owner("s1", "anna"), Owner("s2", "bert")


@pytest.fixture
def ports(tmp_path: Path) -> HostPorts:
    return HostPorts(tmp_path / "ports")


def free() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def listening(address: str, port: int = 0) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen()
        yield int(listener.getsockname()[1])


async def test_a_reserved_port_listens_only_on_the_loopback(ports: HostPorts) -> None:
    held = await ports.reserve(ANNA)
    with socket.create_connection(("127.0.0.1", held.port)):
        assert held.socket.getsockname() == ("127.0.0.1", held.port)
    await ports.release(held)
    await ports.release(held)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held.port))


async def test_the_error_names_the_session_that_owns_the_port(ports: HostPorts, tmp_path: Path) -> None:
    held = await ports.reserve(ANNA)
    for daemon in (ports, HostPorts(tmp_path / "ports")):
        with pytest.raises(PortTaken, match=rf"port {held.port} is taken by session anna \(s1\)"):
            await daemon.reserve(BERT, wanted=held.port)
    await ports.release(held)
    again = await ports.reserve(BERT, wanted=held.port)
    assert again.port == held.port
    await ports.release(again)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
async def test_the_error_names_the_program_that_owns_the_port(ports: HostPorts, address: str) -> None:
    with listening(address) as port:
        mine = rf"another program, \S+ \(pid {os.getpid()}\)"
        with pytest.raises(PortTaken, match=mine) as caught:
            await ports.reserve(ANNA, wanted=port)
        assert caught.value.hint


async def test_records_of_a_killed_daemon_are_ignored(ports: HostPorts, tmp_path: Path) -> None:
    script = (
        "import anyio, os, sys, pathlib; from hiveyard.engine.access.host_ports import *\n"
        "held = anyio.run(HostPorts(pathlib.Path(sys.argv[1])).reserve, Owner('s9', 'dead'))\n"
        "print(held.port, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "ports")], capture_output=True, check=False)  # noqa: ASYNC221
    with listening("127.0.0.1", int(done.stdout)) as port, pytest.raises(PortTaken, match="another program"):
        await ports.reserve(ANNA, wanted=port)
    held = await ports.reserve(ANNA, wanted=int(done.stdout))
    await ports.release(held)


async def test_the_preferred_port_comes_first_then_a_free_one(ports: HostPorts) -> None:
    previous = free()
    held = await ports.reserve(ANNA, preferred=(previous,), among=range(40000, 40010))
    assert held.port == previous
    with listening("127.0.0.1") as taken:
        other = await ports.reserve(BERT, preferred=(previous, taken), among=range(40000, 40010), avoid=(40000,))
    assert other.port in range(40001, 40010)
    for one in (held, other):
        await ports.release(one)


async def test_a_port_to_avoid_is_used_when_no_other_is_free(ports: HostPorts) -> None:
    first, last = [await ports.reserve(BERT, among=range(43000, 43010), avoid=range(43000, 43009)) for _ in range(2)]
    assert (first.port, last.port) == (43009, 43000)
    for one in (first, last):
        await ports.release(one)


async def test_a_range_without_a_free_port_is_reported(ports: HostPorts) -> None:
    with listening("127.0.0.1") as one, pytest.raises(NoFreePort, match=f"{one}"):
        await ports.reserve(ANNA, among=(one,))


@pytest.mark.parametrize("wanted", [0, -1, 65536])
async def test_an_invalid_port_number_is_refused(ports: HostPorts, wanted: int) -> None:
    with pytest.raises(BadInput, match=str(wanted)):
        await ports.reserve(ANNA, wanted=wanted)


async def test_concurrent_reservations_get_different_ports(ports: HostPorts, tmp_path: Path) -> None:
    found: list[int] = []
    held = []

    async def one(daemon: HostPorts) -> None:
        held.append(await daemon.reserve(ANNA, among=range(41000, 41100)))
        found.append(held[-1].port)

    daemons = [ports, HostPorts(tmp_path / "ports")]
    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(one, daemons[number % 2])
    assert len(set(found)) == 40
    for each in held:
        await ports.release(each)


async def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ports").mkdir()
    (tmp_path / "ports").chmod(0o777)
    with pytest.raises(OrchestrationError, match="only this user"):
        await HostPorts(tmp_path / "ports").reserve(ANNA)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OrchestrationError, match="only this user"):
        await HostPorts(tmp_path / "link").reserve(ANNA)


@pytest.mark.parametrize(("first", "last"), [(0, 10), (10, 9), (1, 70000)])
def test_an_invalid_range_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match=r"ports\.first"):
        PortSettings(first=first, last=last)
