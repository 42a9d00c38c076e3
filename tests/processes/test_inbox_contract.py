"""The contract of an inbox, for every process manager: messages arrive whole, once and in order, whoever is killed."""

from __future__ import annotations

import hashlib
import os
from contextlib import aclosing

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessSpec, ProcessStatus, Restart
from hiveyard.core.errors import BadInput, NoSuchProcess, ProcessEnded
from hiveyard.core.ports import Guest, ProcessManager
from tests.contract.conftest import Place
from tests.processes.steps import PATIENCE, ended, output, processes_with, spec, until_gone, until_output

pytestmark = pytest.mark.anyio


async def test_what_is_sent_is_read_and_closing_ends_it(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "cat; echo end", inbox=True))
    assert await manager.send(guest, name, "1", b"one\n")
    await until_output(manager, guest, name, b"one\n")
    assert await manager.send(guest, name, "2", b"two\n")
    await until_output(manager, guest, name, b"one\ntwo\n")
    await manager.close_inbox(guest, name)
    await manager.close_inbox(guest, name)
    assert await output(manager, guest, name) == b"one\ntwo\nend\n"
    await manager.close_inbox(guest, name)


async def test_a_message_of_one_key_arrives_once(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "cat", inbox=True))
    odd = "a 'key'\n$(id)\t\udcff " + "x" * 5000
    assert await manager.send(guest, name, odd, b"once\n")
    assert not await manager.send(guest, name, odd, b"once\n")
    assert await manager.send(guest, name, "another", b"once\n")
    await manager.close_inbox(guest, name)
    assert await output(manager, guest, name) == b"once\nonce\n"
    assert not await manager.send(guest, name, odd, b"once\n")


async def test_any_bytes_arrive_up_to_the_limit(manager: ProcessManager, guest: Guest, name: str) -> None:
    data = os.urandom(16 << 20)
    await manager.start(guest, spec(name, "sha256sum", inbox=True))
    with pytest.raises(BadInput, match="16777217"):
        await manager.send(guest, name, "too long", data + b"x")
    await manager.send(guest, name, "nothing", b"")
    await manager.send(guest, name, "all", data)
    await manager.send(guest, name, "odd", b"\0\xff\n\0")
    await manager.close_inbox(guest, name)
    digest = hashlib.sha256(data + b"\0\xff\n\0").hexdigest()
    assert (await output(manager, guest, name)).split()[0].decode() == digest


async def test_who_does_not_read_holds_no_sender_up(manager: ProcessManager, guest: Guest, name: str) -> None:
    go = f"/session/{name}.go"
    await manager.start(guest, spec(name, f"until [ -e {go} ]; do sleep 0.05; done; wc -c", inbox=True))
    with anyio.fail_after(PATIENCE):
        for number in range(6):
            await manager.send(guest, name, str(number), b"x" * 100_000)
    await manager.close_inbox(guest, name)
    await guest.write(go, b"")
    assert await output(manager, guest, name) == b"600000\n"


async def test_who_never_reads_ends_and_is_stopped_as_any_other(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    other = f"{name}-other"
    await manager.start(guest, spec(name, f"until [ -e /session/{name}.go ]; do sleep 0.05; done; exit 3", inbox=True))
    await manager.start(guest, spec(other, "exec sleep 1000.375", inbox=True))
    for one in (name, other):
        await manager.send(guest, one, "long", b"x" * 1_000_000)
    await guest.write(f"/session/{name}.go", b"")
    assert (await ended(manager, guest, name)).exit_code == 3
    assert (await manager.stop(guest, other)).exit_code == 130
    assert not await processes_with(guest, "sleep 1000.375")


async def test_messages_of_many_senders_do_not_mix(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "cat", inbox=True))
    sent = [b"%d:" % number + b"x" * (number * 10_000) + b"\n" for number in range(20)]
    new: list[bool] = []

    async def send(number: int) -> None:
        new.append(await manager.send(guest, name, str(number), sent[number]))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(send, number)
            group.start_soon(send, number)
    assert sorted(new) == [False] * 20 + [True] * 20
    await manager.close_inbox(guest, name)
    assert sorted((await output(manager, guest, name)).splitlines(True)) == sorted(sent)


async def test_a_killed_sender_has_sent_all_or_nothing(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "cat", inbox=True))
    sent = [b"%d:" % number + b"x" * 300_000 + b"\n" for number in range(25)]
    for number, message in enumerate(sent):
        with anyio.move_on_after(0.008 * number):
            await manager.send(guest, name, str(number), message)
        if number % 2:
            await manager.send(guest, name, str(number), message)
    for number, message in enumerate(sent):
        await manager.send(guest, name, str(number), message)
    await manager.close_inbox(guest, name)
    arrived = (await output(manager, guest, name)).splitlines(True)
    assert sorted(arrived) == sorted(sent)
    assert [line for line in arrived if int(line.partition(b":")[0]) % 2] == sent[1::2]


@pytest.mark.parametrize("torn", ["printf 00000 >>index", "printf half >>in", "printf 'x%.0s' {1..90} >>index"])
async def test_what_a_sender_left_half_is_cut_off(manager: ProcessManager, guest: Guest, name: str, torn: str) -> None:
    """As when it was killed between two of its writes, or the disk was full."""
    await manager.start(guest, spec(name, "cat", inbox=True))
    await manager.send(guest, name, "1", b"one\n")
    tear = Command(argv=("bash", "-c", torn), cwd=f"/session/processes/{name}")
    assert (await guest.run(tear)).ok
    await manager.send(guest, name, "2", b"two\n")
    assert not await manager.send(guest, name, "2", b"two\n")
    await manager.close_inbox(guest, name)
    assert await output(manager, guest, name) == b"one\ntwo\n"


async def test_a_process_that_ended_takes_nothing(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "read -r line; echo $line", inbox=True))
    assert await manager.send(guest, name, "1", b"one\n")
    await ended(manager, guest, name)
    with pytest.raises(ProcessEnded, match="has ended"):
        await manager.send(guest, name, "2", b"two\n")
    assert not await manager.send(guest, name, "1", b"one\n")
    await manager.close_inbox(guest, name)


async def test_a_closed_inbox_takes_nothing(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "cat; sleep 1000", inbox=True))
    await manager.send(guest, name, "1", b"one\n")
    await manager.close_inbox(guest, name)
    with pytest.raises(ProcessEnded, match="closed"):
        await manager.send(guest, name, "2", b"two\n")
    assert not await manager.send(guest, name, "1", b"one\n")
    await manager.stop(guest, name, grace=0)


async def test_a_process_without_an_inbox_and_an_unknown_one_are_errors(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    with pytest.raises(NoSuchProcess):
        await manager.send(guest, name, "1", b"one\n")
    with pytest.raises(NoSuchProcess):
        await manager.close_inbox(guest, name)
    with pytest.raises(NoSuchProcess):
        await manager.send(guest, "../x", "1", b"one\n")
    await manager.start(guest, spec(name, "sleep 1000"))
    for call in (manager.send(guest, name, "1", b"one\n"), manager.close_inbox(guest, name)):
        with pytest.raises(BadInput, match="inbox"):
            await call
    await manager.stop(guest, name, grace=0)


@pytest.mark.parametrize("other", [{"stdin": "/session/x"}, {"terminal": True}])
def test_an_inbox_is_the_only_input(other: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="one input"):
        spec("x", "cat", inbox=True, **other)


async def test_the_next_run_gets_what_the_former_did_not_read(manager: ProcessManager, guest: Guest, name: str) -> None:
    """A run reads its first message, half of the second (it is longer than any buffer), and dies."""
    first, second, third = b"1" * 99_999 + b"\n", b"2" * 299_999 + b"\n", b"third\n"
    script = (
        f"if [ -e /session/{name}.again ]; then cat; exit 0; fi; : >/session/{name}.again; "
        "dd bs=1000 count=200 iflag=fullblock status=none | wc -c; exit 1"
    )
    await manager.start(guest, spec(name, script, inbox=True, restart=Restart(max_restarts=1, min_uptime=1000)))
    await manager.send(guest, name, "1", first)
    await manager.send(guest, name, "2", second)
    await until_output(manager, guest, name, b"200000\n" + second)
    await manager.send(guest, name, "3", third)
    await manager.close_inbox(guest, name)
    assert await output(manager, guest, name) == b"200000\n" + second + third
    info = await manager.get(guest, name)
    assert (info.restarts, info.exit_code) == (1, 0)


async def test_each_run_of_many_gets_its_message(manager: ProcessManager, guest: Guest, name: str) -> None:
    """Runs that read one byte at a time, as `read` does, and end while more is being sent."""
    policy = Restart(max_restarts=9, min_uptime=1000)
    await manager.start(guest, spec(name, "read -r line; echo got $line; exit 1", inbox=True, restart=policy))
    for number in range(10):
        await manager.send(guest, name, str(number), b"%d\n" % number)
    assert await output(manager, guest, name) == b"".join(b"got %d\n" % number for number in range(10))


async def test_closing_counts_for_every_later_run(manager: ProcessManager, guest: Guest, name: str) -> None:
    policy = Restart(max_restarts=2, min_uptime=1000)
    await manager.start(guest, spec(name, "cat; echo end", inbox=True, restart=policy))
    await manager.send(guest, name, "1", b"one\n")
    await manager.close_inbox(guest, name)
    assert await output(manager, guest, name) == b"one\nend\nend\nend\n"


async def test_an_inbox_outlives_its_connection_and_its_provider_object(
    manager: ProcessManager, shared: Place, name: str
) -> None:
    async with shared.guest() as guest:
        await manager.start(guest, spec(name, "cat", inbox=True))
        await manager.send(guest, name, "1", b"one\n")
    async with shared.offer.again().guest(shared.name) as guest:
        assert not await manager.send(guest, name, "1", b"one\n")
        await manager.send(guest, name, "2", b"two\n")
        await manager.close_inbox(guest, name)
        assert await output(manager, guest, name) == b"one\ntwo\n"


async def test_the_feeder_sleeps_and_leaves_with_its_process(manager: ProcessManager, guest: Guest, name: str) -> None:
    info = await manager.start(guest, spec(name, "exec sleep 1000", inbox=True))
    await manager.send(guest, name, "1", b"one\n")
    runner = int((await guest.read(f"/session/processes/{name}/claim")).split()[0])
    children = (await guest.read(f"/proc/{runner}/task/{runner}/children", limit=4096)).split()
    pipe = await _link(guest, f"/proc/{info.pid}/fd/0")
    [feeder] = [int(pid) for pid in children if await _link(guest, f"/proc/{int(pid)}/fd/1") == pipe]
    before = await _switches(guest, feeder)
    await anyio.sleep(2)
    assert await _switches(guest, feeder) == before
    await manager.stop(guest, name)
    assert not await guest.exists(f"/proc/{feeder}")


async def test_a_killed_runner_takes_its_helpers_along(manager: ProcessManager, guest: Guest, name: str) -> None:
    """The process is lost then, and its inbox is at an end."""
    await manager.start(guest, spec(name, "cat; exec sleep 1000", inbox=True))
    await manager.send(guest, name, "1", b"one\n")
    runner = (await guest.read(f"/session/processes/{name}/claim")).split()[0].decode()
    assert (await guest.run(Command(argv=("bash", "-c", "kill -KILL $1", "x", runner)))).ok
    await until_output(manager, guest, name, b"one\n")
    with pytest.raises(ProcessEnded):
        await manager.send(guest, name, "2", b"two\n")
    assert (await manager.stop(guest, name, grace=0)).status is ProcessStatus.LOST
    await until_gone(guest, f"/processes/{name}")
    await manager.remove(guest, name)


async def _link(guest: Guest, path: str) -> str:
    return (await guest.run(Command(argv=("readlink", path)))).stdout.decode().strip()


async def _switches(guest: Guest, pid: int) -> bytes:
    """How often it has slept or was put to sleep: a process that does nothing does not."""
    status = await guest.read(f"/proc/{pid}/status")
    return b"".join(line for line in status.splitlines(True) if b"ctxt_switches" in line)


async def test_what_a_guest_forges_in_an_inbox_is_never_more_than_an_error(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    await manager.start(guest, ProcessSpec(name=name, command=Command(argv=("cat",)), inbox=True))
    forge = Command(argv=("bash", "-c", "rm -f index in; ln -s /dev/zero in; ln -s /etc index"))
    forge = Command(argv=forge.words(), cwd=f"/session/processes/{name}")
    assert (await guest.run(forge)).ok
    with anyio.fail_after(PATIENCE), pytest.raises(Exception, match="was not stored"):
        await manager.send(guest, name, "1", b"one\n")
    assert (await manager.stop(guest, name)).status is ProcessStatus.EXITED


async def test_messages_arrive_while_the_process_runs(manager: ProcessManager, guest: Guest, name: str) -> None:
    """A conversation: each answer is waited for before the next message is sent."""
    await manager.start(guest, spec(name, 'while read -r line; do echo "<$line>"; done', inbox=True))
    got = b""
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            for number in range(5):
                await manager.send(guest, name, f"turn {number}", b"%d\n" % number)
                while not got.endswith(b"<%d>\n" % number):
                    got += await anext(pieces)
    await manager.close_inbox(guest, name)
    assert (await ended(manager, guest, name)).exit_code == 0
