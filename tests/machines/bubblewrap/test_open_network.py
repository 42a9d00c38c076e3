"""Test that a machine with an open network reaches the outside and its door, but not the host's loopback."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import ProviderUnavailable
from hiveyard.core.machines import HOST, MachineSpec, Network
from hiveyard.core.ports import Guest
from hiveyard.machines.bubblewrap import BubblewrapProvider, open_network
from tests.contract.door import serve_door
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio
KNOCK = 'exec 3<>"/dev/tcp/$1/$2" && head -n 1 <&3'
# The addresses of slirp4netns that lead somewhere, and those that programs try.
ALIASES = ("127.0.0.1", "10.0.2.2", "10.0.2.3", "10.0.2.1", "10.0.2.254", "0.0.0.0")


@pytest.fixture
def scratch() -> Iterator[Path]:
    with searched_directory() as path:
        yield Path(path)


@asynccontextmanager
async def opened(scratch: Path) -> AsyncIterator[tuple[BubblewrapProvider, Guest]]:
    (scratch / "door").mkdir()
    provider = BubblewrapProvider(scratch / "state", scratch / "cache")
    spec = MachineSpec(image=HOST, network=Network.OPEN, session=scratch / "session", door=scratch / "door")
    try:
        await provider.boot("t", spec)
    except ProviderUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(error.message)
    try:
        async with provider.guest("t") as guest:
            yield provider, guest
    finally:
        await provider.terminate("t")


@contextmanager
def greeting(address: str) -> Iterator[int]:
    """Run a server at an address of this host, and return its port."""
    with socket.create_server((address, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    made, _ = server.accept()
                except OSError:
                    return
                with made:
                    made.sendall(b"hello\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def own_address() -> str:
    """Return this host's address on its network. For a machine it is like any other computer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


async def knock(guest: Guest, address: str, port: int) -> str:
    command = Command(argv=("timeout", "3", "bash", "-c", KNOCK, "bash", address, str(port)))
    return (await guest.run(command)).stdout.decode()


def carriers(scratch: Path) -> list[int]:
    """Return the slirp4netns processes that log into this state directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "fd" / "2").readlink().is_relative_to(scratch) and b"--exit-fd" in (
                entry / "cmdline"
            ).read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def test_the_outside_and_the_door_are_reached_and_the_loopback_is_not(scratch: Path) -> None:
    async with opened(scratch) as (_, guest):
        with greeting(own_address()) as port:
            assert await knock(guest, own_address(), port) == "hello\n"
        with greeting("127.0.0.1") as port, greeting("0.0.0.0") as everywhere:
            for alias in ALIASES:
                assert await knock(guest, alias, port) == "", alias
                assert await knock(guest, alias, everywhere) == "", alias
        with serve_door(scratch / "door", "the door"):
            ask = 'exec 3<>/dev/tcp/127.0.0.1/8377; printf "GET / HTTP/1.0\\r\\n\\r\\n" >&3; cat <&3'
            assert "the door" in (await guest.run(Command(shell=ask), timeout=20)).stdout.decode()
        assert (await guest.read("/etc/resolv.conf")).decode() == open_network.resolv_conf()


async def test_nobody_in_the_machine_can_change_the_routes(scratch: Path) -> None:
    async with opened(scratch) as (_, guest):
        done = await guest.run(Command(shell="ip route flush 10.0.2.0/25 || ip route del unreachable 10.0.2.0/25"))
        assert not done.ok
        with greeting("127.0.0.1") as port:
            assert await knock(guest, "10.0.2.2", port) == ""


async def test_who_carries_the_network_has_no_rights_and_ends_with_the_machine(scratch: Path) -> None:
    async with opened(scratch) as (provider, _):
        (carrier,) = carriers(scratch)
        status = Path(f"/proc/{carrier}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "Seccomp:\t2" in status
        assert "Uid:\t0" not in status
        # Also when the machine dies by itself.
        os.kill(int((scratch / "state" / "t" / "pid").read_text().split()[0]), signal.SIGKILL)
        with anyio.fail_after(10):
            while carriers(scratch):  # noqa: ASYNC110 (the kernel sends no event)
                await anyio.sleep(0.05)
        assert await provider.names() == {"t"}


async def test_a_terminated_machine_leaves_no_carrier(scratch: Path) -> None:
    async with opened(scratch) as (provider, _):
        await provider.terminate("t")
        assert carriers(scratch) == []


async def test_a_missing_program_is_told_with_the_command_that_installs_it(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = scratch / "bin"
    programs.mkdir()
    for name in ("bwrap", "nsenter", "setpriv", "tar"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    provider = BubblewrapProvider(scratch / "state", scratch / "cache")
    with pytest.raises(ProviderUnavailable, match="needs slirp4netns") as refused:
        await provider.boot("t", MachineSpec(image=HOST, network=Network.OPEN))
    assert "install -y slirp4netns" in refused.value.hint
    assert await provider.names() == set()


def test_a_resolver_on_the_loopback_is_passed_over_for_those_it_asks(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\n")
    real.write_text("# from the network\nnameserver fe80::1\nnameserver 198.51.100.7\n")
    assert open_network.resolv_conf((stub, real)) == "nameserver 198.51.100.7\n"
    with pytest.raises(ProviderUnavailable, match="on its loopback"):
        open_network.resolv_conf((stub, tmp_path / "absent"))
