"""ssh into machines of every provider, with the host's own ssh programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from hiveyard.core.ports import Guest
from hiveyard.engine.access.host_ports import HostPorts, Owner
from hiveyard.engine.access.ssh_keys import SshKeys, config
from hiveyard.engine.access.ssh_server import serve_ssh
from hiveyard.kit import process
from hiveyard.kit.process import Completed
from tests.contract.conftest import Place
from tests.engine.access.test_forwarding import ask, served
from tests.support.person import person

pytestmark = pytest.mark.anyio
PATIENCE = 90.0


class Way(NamedTuple):
    """An ssh configuration file in which `hv-bee` is the shared machine."""

    config: Path
    key: Path
    port: int


@pytest.fixture
async def way(shared: Place, tmp_path: Path) -> AsyncIterator[Way]:
    ports = HostPorts(tmp_path / "ports")
    held = await ports.reserve(Owner("s1", "bee"))
    keys = SshKeys(tmp_path / "keys with spaces").of("s1")
    file = tmp_path / "config"
    file.write_text(config("bee", "s1", held.port, "agent", keys))
    try:
        async with serve_ssh(held, shared.offer.provider, shared.name, keys):
            yield Way(file, keys.key, held.port)
    finally:
        await ports.release(held)


async def ssh(way: Way, *words: str, stdin: bytes = b"", program: str = "ssh") -> Completed:
    return await process.run([program, "-F", str(way.config), *words], stdin=stdin, timeout=PATIENCE)


async def test_a_command_has_stdin_stdout_stderr_and_exit_code(way: Way) -> None:
    done = await ssh(way, "hv-bee", 'cat; id -un; pwd; echo "a  b" >&2; exit 9', stdin=b"typed\0\n")
    assert (done.status, done.stdout, done.stderr) == (9, b"typed\0\nagent\n/home/agent\n", b"a  b\n")


async def test_large_data_arrives_complete(way: Way) -> None:
    data = os.urandom(4 << 20)
    done = await ssh(way, "hv-bee", "cat", stdin=data)
    assert (done.status, done.stdout == data) == (0, True)


async def test_a_shell_has_a_terminal_that_can_be_resized(way: Way) -> None:
    env = {**os.environ, "TERM": "xterm-256color"}
    async with person(["ssh", "-F", str(way.config), "hv-bee"], rows=30, columns=100, env=env) as somebody:
        before = somebody.modes()
        somebody.type("PS1='ready> '; echo $TERM; stty size\r")
        await somebody.sees("30 100")
        await somebody.sees("xterm-256color")
        somebody.resize(40, 120)
        await anyio.sleep(0.5)
        somebody.type("stty size\r")
        await somebody.sees("\n40 120\n")
        somebody.type("bash -c 'echo begun-$((1)); exec sleep 1000'\r")
        await somebody.sees("begun-1")
        somebody.type("\x03")
        await somebody.sees("^C")
        somebody.type("echo after=$?\r")
        await somebody.sees("after=130")
        somebody.type("exit 6\r")
        assert await somebody.leaves() == 6
        assert somebody.modes() == before


async def test_the_sessions_tmux_is_reachable(way: Way, guest: Guest) -> None:
    done = await ssh(way, "hv-bee", "tmux new-session -d -s byssh sleep 1000 && tmux has-session -t byssh")
    assert done.status == 0, done.stderr
    assert (await ssh(way, "hv-bee", "tmux kill-session -t byssh")).status == 0


async def test_a_command_ends_when_its_connection_closes(way: Way, guest: Guest) -> None:
    with anyio.move_on_after(3):
        await process.run(["ssh", "-F", str(way.config), "hv-bee", "echo $$ >/tmp/pid; exec sleep 1000"])
    pid = int(await guest.read("/tmp/pid"))
    with anyio.fail_after(PATIENCE):
        while await guest.exists(f"/proc/{pid}"):  # noqa: ASYNC110
            await anyio.sleep(0.1)


async def test_files_are_copied_by_sftp_where_the_image_has_it(way: Way, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(300_000))
    has = await guest.exists("/usr/lib/openssh/sftp-server")
    done = await ssh(way, str(tmp_path / "file"), "hv-bee:/tmp/there", program="scp")
    if not has:
        assert done.status != 0 and b"no sftp-server in the image" in done.stderr
        return
    assert done.status == 0, done.stderr
    done = await ssh(way, "hv-bee:/tmp/there", str(tmp_path / "back"), program="scp")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


async def test_ports_of_the_guest_can_be_forwarded_and_others_cannot(way: Way, guest: Guest, tmp_path: Path) -> None:
    ports = HostPorts(tmp_path / "more")
    held = [await ports.reserve(Owner("x", "x")) for _ in range(2)]
    for one in held:
        await ports.release(one)
    first, second = (one.port for one in held)
    forward = ("-N", "-L", f"{first}:localhost:8200", "-L", f"{second}:10.0.2.2:80")
    async with served(guest, 8200, "wc -c"), process.running(["ssh", "-F", str(way.config), *forward, "hv-bee"]):
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    assert await ask(first, b"12345") == b"5\n"
                    break
                except OSError:
                    await anyio.sleep(0.1)
            async with await anyio.connect_tcp("127.0.0.1", second) as refused:
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await refused.receive()


@pytest.mark.parametrize("words", [("-l", "root"), ("-l", "nobody"), ("-o", "PreferredAuthentications=password,none")])
async def test_other_users_and_keys_are_refused(way: Way, words: tuple[str, ...]) -> None:
    done = await ssh(way, "-o", "BatchMode=yes", *words, "hv-bee", "true")
    assert (done.status, b"Permission denied" in done.stderr) == (255, True), done.stderr


async def test_keys_of_another_session_are_refused_and_its_port_is_not_trusted(way: Way, tmp_path: Path) -> None:
    other = SshKeys(tmp_path / "keys with spaces").of("s2")
    done = await ssh(way, "-o", f'IdentityFile="{other.key}"', "-o", "BatchMode=yes", "hv-bee", "true")
    # ssh also tries the key of the configuration, so it is removed.
    way.config.write_text(way.config.read_text().replace(str(way.key), str(other.key)))
    done = await ssh(way, "-o", "BatchMode=yes", "hv-bee", "true")
    assert (done.status, b"Permission denied" in done.stderr) == (255, True)
    way.config.write_text(config("bee", "s2", way.port, "agent", other))
    done = await ssh(way, "-o", "BatchMode=yes", "hv-bee", "true")
    assert (done.status, b"Host key verification failed" in done.stderr) == (255, True)


def test_keys_are_kept_and_differ_between_sessions(tmp_path: Path) -> None:
    keys = SshKeys(tmp_path / "keys")
    first, again = keys.of("s1"), keys.of("s1")
    assert first.user.public_data == again.user.public_data and first.host.public_data == again.host.public_data
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys/s1").iterdir()} == {0o600}
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    keys.forget("s1")
    keys.forget("s1")
    assert keys.of("s1").user.public_data != first.user.public_data


def test_ssh_accepts_the_configuration(tmp_path: Path) -> None:
    keys = SshKeys(tmp_path / "a % b").of("s1")
    file = tmp_path / "config"
    file.write_text(config("bee", "s1", 2222, "agent", keys))
    said = subprocess.run(["ssh", "-F", str(file), "-G", "hv-bee"], capture_output=True, text=True, check=True).stdout
    assert "hostname 127.0.0.1\n" in said and "port 2222\n" in said and "hostkeyalias hiveyard-s1\n" in said
