"""Try forbidden system calls in machines that share the host's kernel."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from hiveyard.core.commands import Command
from hiveyard.core.ports import Guest
from hiveyard.machines.shared import seccomp
from tests.support.syscalls import HERE, one_call

from .conftest import Place
from .providers import Offer

pytestmark = pytest.mark.anyio

NOTHING = bytes(120)
AT_FDCWD = (1 << 64) - 100
CREATE = 0o101
SET_USER_ID, SET_GROUP_ID = 0o4755, 0o2755


@pytest.fixture(autouse=True)
def _on_the_hosts_kernel(offer: Offer) -> None:
    if offer.provider.name not in ("bubblewrap", "docker") or not seccomp.available():
        pytest.skip("only these two filter system calls, on some architectures")


async def _try(guest: Guest, folder: str, name: str, *arguments: int | bytes) -> str:
    """Make a system call in the guest, and return the name of its error, or nothing."""
    await guest.write_atomic(f"{folder}/call", one_call(name, arguments), mode=0o755)
    done = await guest.run(Command(argv=("./call",), cwd=folder))
    return errno.errorcode.get(done.status, "") if done.status else ""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("socket", (40, 1, 0)),  # AF_VSOCK
        ("socket", (38, 5, 0)),  # AF_ALG
        ("socket", (40 | 1 << 32, 1, 0)),  # the kernel uses only the lower half
        ("socketpair", (30, 1, 0, NOTHING)),  # AF_TIPC
        ("keyctl", (0, (1 << 64) - 3, 0)),  # KEYCTL_GET_KEYRING_ID of the session
        ("add_key", (b"user", b"name", b"content", 7, (1 << 64) - 4)),
        ("request_key", (b"user", b"name", 0, 0)),
        ("bpf", (0, NOTHING, 72)),
        ("perf_event_open", (NOTHING, 0, (1 << 64) - 1, (1 << 64) - 1, 0)),
        ("userfaultfd", (1,)),
        ("io_uring_setup", (1, NOTHING)),
        ("syslog", (10, 0, 0)),  # SYSLOG_ACTION_SIZE_BUFFER
        ("unshare", (0x10000000,)),  # CLONE_NEWUSER
        ("clone", (0x10000000 | 17, 0, 0, 0, 0)),
    ],
)
async def test_a_call_that_machines_do_not_need_is_refused(
    guest: Guest, folder: str, name: str, arguments: tuple[int | bytes, ...]
) -> None:
    assert await _try(guest, folder, name, *arguments) in ("EPERM", "EAFNOSUPPORT")


@pytest.mark.parametrize("name", ["clone3", "openat2"])
async def test_a_call_whose_arguments_cannot_be_seen_is_missing(guest: Guest, folder: str, name: str) -> None:
    assert await _try(guest, folder, name, NOTHING, 0) == "ENOSYS"


@pytest.mark.parametrize("family", [1, 2, 10, 16])
async def test_the_usual_sockets_can_be_opened(guest: Guest, folder: str, family: int) -> None:
    assert await _try(guest, folder, "socket", family, 3 if family == 16 else 1, 0) == ""


@pytest.mark.parametrize("mode", [SET_USER_ID, SET_GROUP_ID])
async def test_no_file_of_a_guest_gets_a_set_id_bit(place: Place, mode: int) -> None:
    """On the host's disk the file belongs to the daemon's user, which may be root."""
    async with place.guest() as guest:
        folder = "/session/d"
        await guest.mkdir(folder)
        await guest.write(f"{folder}/f", b"x", mode=0o755)
        calls: list[tuple[str, tuple[int | bytes, ...]]] = [
            ("fchmodat", (AT_FDCWD, b"f", mode)),
            ("fchmodat2", (AT_FDCWD, b"f", mode, 0)),
            ("openat", (AT_FDCWD, b"new1", CREATE, mode)),
            ("openat", (AT_FDCWD, b".", 0o20200002, mode)),
            ("mknodat", (AT_FDCWD, b"new2", stat.S_IFREG | mode, 0)),
        ]
        if HERE == "x86_64":
            calls += [("chmod", (b"f", mode)), ("open", (b"new3", CREATE, mode)), ("creat", (b"new4", mode))]
            calls += [("mknod", (b"new5", stat.S_IFREG | mode, 0))]
        for name, arguments in calls:
            assert await _try(guest, folder, name, *arguments) == "EPERM", name
        assert not (await guest.run(Command(argv=("chmod", f"{mode:o}", f"{folder}/f")))).ok
        # Without O_CREAT the mode is not used, and may be anything.
        assert await _try(guest, folder, "openat", AT_FDCWD, b"f", 0, mode) == ""
        assert (await guest.run(Command(argv=("chmod", "1750", f"{folder}/f")))).ok
    await place.offer.provider.stop(place.name)
    assert stat.S_IMODE(Path(place.session, "d/f").stat().st_mode) == 0o1750
    for directory, _, names in os.walk(place.session):
        for one in names:
            assert not Path(directory, one).lstat().st_mode & (stat.S_ISUID | stat.S_ISGID), one


async def test_process_1_and_what_it_starts_are_under_the_filter(guest: Guest) -> None:
    script = 'for d in /proc/[0-9]*; do while read -r k v; do [[ $k == Seccomp: ]] && echo "$v"; done <$d/status; done'
    done = await guest.run(Command(shell=script))
    assert set(done.stdout.split()) == {b"2"}, done
