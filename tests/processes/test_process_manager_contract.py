"""The contract of every process manager, on every provider: a process that nobody needs to be connected to."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import aclosing
from dataclasses import replace

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessSpec, ProcessStatus, Restart
from hiveyard.core.errors import BadInput, NoSuchProcess, ProcessError, ProcessNotStarted
from hiveyard.core.machines import MachineSpec
from hiveyard.core.ports import Guest, ProcessManager
from tests.contract.conftest import Place, machine
from tests.contract.providers import Offer
from tests.processes.steps import PATIENCE, ended, output, spec, until_gone

pytestmark = pytest.mark.anyio


# --- starting --------------------------------------------------------------------------------------------------------


async def test_a_started_process_is_running_and_has_a_pid(manager: ProcessManager, guest: Guest, name: str) -> None:
    info = await manager.start(guest, spec(name, "sleep 1000"))
    assert info == await manager.get(guest, name) or info.pid == (await manager.get(guest, name)).pid
    assert (info.status, info.exit_code, info.ended_at) == (ProcessStatus.RUNNING, None, None)
    assert info.pid is not None and info.started_at is not None
    assert await guest.exists(f"/proc/{info.pid}")
    await manager.stop(guest, name)
    assert not await guest.exists(f"/proc/{info.pid}")


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("false", 1)],
)
async def test_exit_codes_are_exact(manager: ProcessManager, guest: Guest, name: str, script: str, code: int) -> None:
    await manager.start(guest, spec(name, script))
    info = await ended(manager, guest, name)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, code)
    assert info.ended_at is not None and info.started_at is not None and info.ended_at >= info.started_at


async def test_starting_twice_starts_once(manager: ProcessManager, guest: Guest, name: str) -> None:
    script = f"echo started >>/session/{name}.count"
    first = await manager.start(guest, spec(name, script))
    await ended(manager, guest, name)
    again = await manager.start(guest, spec(name, script))
    assert (again.pid, again.status) == (first.pid, ProcessStatus.EXITED)
    assert await guest.read(f"/session/{name}.count") == b"started\n"


async def test_racing_starts_start_once(manager: ProcessManager, guest: Guest, name: str) -> None:
    pids: set[int | None] = set()
    script = f"echo $$ >>/session/{name}.count; echo counted; sleep 1000"

    async def start() -> None:
        pids.add((await manager.start(guest, spec(name, script))).pid)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(start)
    assert len(pids) == 1
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            assert await anext(pieces) == b"counted\n"
    assert await guest.read(f"/session/{name}.count") == f"{pids.pop()}\n".encode()
    await manager.stop(guest, name)


async def test_a_start_that_was_cancelled_is_finished_by_the_next(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    """A daemon may die at any moment of a start: whatever it left, the next start begins the process once."""
    began = time.monotonic()
    await manager.start(guest, spec(name, "true"))
    whole = time.monotonic() - began
    moments = 12 if whole < 1 else 4
    for number in range(moments):
        one = f"{name}-{number}"
        with anyio.move_on_after(whole * number / moments):
            await manager.start(guest, spec(one, f"echo started >>/session/{one}.count; sleep 1000"))
        info = await manager.start(guest, spec(one, f"echo started >>/session/{one}.count; sleep 1000"))
        if info.status is ProcessStatus.RUNNING:
            with anyio.fail_after(PATIENCE):
                while not await guest.exists(f"/session/{one}.count"):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            assert await guest.read(f"/session/{one}.count") == b"started\n"
        await manager.stop(guest, one, grace=0)


@pytest.mark.parametrize(
    "options",
    [
        {"command": Command(argv=("/no/such/program",))},
        {"command": Command(argv=("no-such-program",))},
        {"command": Command(argv=("/session",))},
        {"command": Command(argv=("true",), cwd="/no/such/place")},
        {"command": Command(argv=("true",)), "stdin": "/no/such/file"},
        {"command": Command(argv=("true",)), "stdin": "/session"},
    ],
)
async def test_what_cannot_start_is_an_error_and_leaves_nothing(
    manager: ProcessManager, guest: Guest, name: str, options: dict[str, object]
) -> None:
    with pytest.raises(ProcessNotStarted) as caught:
        await manager.start(guest, ProcessSpec(name=name, **options))  # type: ignore[arg-type]
    assert (caught.value.context["process"], caught.value.context["operation"]) == (name, "start")
    with pytest.raises(NoSuchProcess):
        await manager.get(guest, name)


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a b", "-x", ".x", "$(id)", "a\nb", "x" * 101, "é"])
async def test_hostile_names_are_refused(manager: ProcessManager, guest: Guest, bad: str) -> None:
    with pytest.raises(BadInput):
        spec(bad, "true")
    with pytest.raises(NoSuchProcess):
        await manager.get(guest, bad)
    with pytest.raises(NoSuchProcess):
        await manager.stop(guest, bad)
    with pytest.raises(NoSuchProcess):
        await manager.remove(guest, bad)


async def test_odd_but_fair_names_work(manager: ProcessManager, guest: Guest, name: str) -> None:
    for odd in (f"{name}.", f"{name}-_.x", f"0{name}", f"{name}".ljust(100, "x")):
        await manager.start(guest, spec(odd, "exit 5"))
        assert (await ended(manager, guest, odd)).exit_code == 5


async def test_words_environment_and_directory_arrive_as_they_are(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    odd = "a b\t\"'$(id)`id`\\\n*?[x]~ é"
    await guest.mkdir(f"/session/{name} dir")
    command = Command(
        argv=("bash", "-c", 'printf "%s\\0" "$@" "$ODD" "$PWD" "$UID_"; cat', "x", odd, "", "-n"),
        env={"ODD": odd, "UID_": "7", "RANDOM": "mine"},
        cwd=f"/session/{name} dir",
    )
    await manager.start(guest, ProcessSpec(name=name, command=command))
    said = (await output(manager, guest, name)).decode().split("\0")
    assert said == [odd, "", "-n", odd, f"/session/{name} dir", "7", ""]


async def test_a_program_with_an_equals_sign_in_its_name_is_run(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    await guest.write(f"/session/{name}=x", b"#!/bin/sh\necho ran\n", mode=0o755)
    await manager.start(guest, ProcessSpec(name=name, command=Command(argv=(f"/session/{name}=x",))))
    assert await output(manager, guest, name) == b"ran\n"


async def test_home_is_meant_by_a_tilde(manager: ProcessManager, guest: Guest, name: str) -> None:
    await guest.write("~/in put", b"from home")
    command = Command(shell='[ "$PWD" = "$HOME" ] && cat', cwd="~")
    await manager.start(guest, ProcessSpec(name=name, command=command, stdin="~/in put"))
    assert await output(manager, guest, name) == b"from home"


# --- input and output ------------------------------------------------------------------------------------------------


async def test_a_large_prompt_arrives_intact_by_stdin(manager: ProcessManager, guest: Guest, name: str) -> None:
    prompt = os.urandom(1 << 20)
    await guest.write(f"/session/{name}.prompt", prompt)
    await manager.start(guest, spec(name, "sha256sum", stdin=f"/session/{name}.prompt"))
    assert (await output(manager, guest, name)).split()[0].decode() == hashlib.sha256(prompt).hexdigest()


async def test_without_a_file_stdin_is_at_its_end(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "cat; echo end"))
    assert await output(manager, guest, name) == b"end\n"


async def test_binary_output_is_kept_and_the_two_outputs_stay_apart(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    data = bytes(range(256)) * 4096
    await guest.write(f"/session/{name}.data", data)
    await manager.start(guest, spec(name, f"cat /session/{name}.data; cat /session/{name}.data >&2; echo more >&2"))
    assert await output(manager, guest, name) == data
    assert await output(manager, guest, name, "stderr") == data + b"more\n"
    assert await output(manager, guest, name, offset=len(data) - 5) == data[-5:]


async def test_lines_arrive_while_the_process_runs(manager: ProcessManager, guest: Guest, name: str) -> None:
    """Each line is waited for before the process is let go on: one that is held back would stop the test."""
    script = f"for i in 1 2 3; do echo line $i; until [ -e /session/{name}.go$i ]; do sleep 0.05; done; done"
    await manager.start(guest, spec(name, script))
    got = b""
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                got += piece
                if got.endswith(b"\n") and (number := got.count(b"\n")) <= 3:
                    await guest.write(f"/session/{name}.go{number}", b"")
    assert got == b"line 1\nline 2\nline 3\n"


async def test_a_flood_is_bounded_and_the_process_ends_by_itself(
    manager: ProcessManager, guest: Guest, name: str, flood: int
) -> None:
    script = f"head -c {flood} /dev/zero; head -c 5000000 /dev/zero >&2; echo survived >/session/{name}.end; exit 9"
    await manager.start(guest, spec(name, script, output_limit=1 << 20))
    assert (await ended(manager, guest, name)).exit_code == 9
    assert await guest.read(f"/session/{name}.end") == b"survived\n"
    assert len(await output(manager, guest, name)) == 1 << 20
    assert len(await output(manager, guest, name, "stderr")) == 1 << 20


async def test_the_last_lines_are_given(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "seq 1000; echo oops >&2"))
    await ended(manager, guest, name)
    assert await manager.logs(guest, name, lines=3) == b"998\n999\n1000\n"
    assert await manager.logs(guest, name, stream="stderr") == b"oops\n"
    with pytest.raises(BadInput):
        await manager.logs(guest, name, stream="../spec")


async def test_children_left_behind_do_not_hold_up_the_end(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "echo said; setsid sleep 1000.25 & exit 4"))
    assert await output(manager, guest, name) == b"said\n"
    assert (await manager.get(guest, name)).exit_code == 4
    await manager.stop(guest, name)
    await until_gone(guest, "sleep 1000.25")


# --- outliving -------------------------------------------------------------------------------------------------------


async def test_a_process_outlives_its_connection_and_its_provider_object(
    manager: ProcessManager, shared: Place, name: str
) -> None:
    async with shared.guest() as guest:
        started = await manager.start(guest, spec(name, f"echo one; until [ -e /session/{name}.go ]; do sleep 0.05; done; echo two; exit 6"))  # fmt: skip  # noqa: E501
    async with shared.offer.again().guest(shared.name) as guest:
        info = await manager.get(guest, name)
        assert (info.status, info.pid) == (ProcessStatus.RUNNING, started.pid)
        await guest.write(f"/session/{name}.go", b"")
        assert await output(manager, guest, name) == b"one\ntwo\n"
        assert (await manager.get(guest, name)).exit_code == 6


async def test_following_can_be_left_and_taken_up_again(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "echo one; sleep 0.5; echo two"))
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            first = await anext(pieces)
    assert first + await output(manager, guest, name, offset=len(first)) == b"one\ntwo\n"


async def test_a_process_is_lost_with_its_machine_and_its_output_is_not(
    manager: ProcessManager, offer: Offer, name: str
) -> None:
    async with machine(offer) as place:
        async with place.guest() as guest:
            await manager.start(guest, spec("over", "echo done; exit 8"))
            await ended(manager, guest, "over")
            started = await manager.start(guest, spec("lost", "echo begun; sleep 1000"))
            async with aclosing(manager.follow(guest, "lost")) as pieces:  # type: ignore[type-var]
                assert await anext(pieces) == b"begun\n"
            # A machine with a disk of its own loses what it wrote in its last seconds.
            assert (await guest.run(Command(argv=("sync",)))).ok
        await offer.crash(place.name)
        await offer.provider.terminate(place.name)
        await offer.provider.boot(
            place.name, MachineSpec(image=offer.image, shape=offer.shape, session=place.session, door=place.door)
        )
        async with place.guest() as guest:
            lost = await manager.get(guest, "lost")
            assert (lost.status, lost.exit_code, lost.pid) == (ProcessStatus.LOST, None, started.pid)
            assert await output(manager, guest, "lost") == b"begun\n"
            assert (await manager.start(guest, spec("lost", "echo again"))).status is ProcessStatus.LOST
            assert (await manager.stop(guest, "lost")).status is ProcessStatus.LOST
            over = await manager.get(guest, "over")
            assert (over.status, over.exit_code) == (ProcessStatus.EXITED, 8)
            await manager.remove(guest, "lost")
            assert (await manager.start(guest, spec("lost", "sleep 1000"))).status is ProcessStatus.RUNNING


async def test_a_crowd_of_processes_lives_side_by_side(
    manager: ProcessManager, guest: Guest, name: str, crowd: int
) -> None:
    names = [f"{name}-{number}" for number in range(crowd)]
    limit = anyio.CapacityLimiter(8)

    async def start(one: str, number: int) -> None:
        async with limit:
            await manager.start(guest, spec(one, f"echo {one}; sleep 1; exit {number}"))

    async with anyio.create_task_group() as group:
        for number, one in enumerate(names):
            group.start_soon(start, one, number)
    assert set(names) <= {info.name for info in await manager.list(guest)}
    for one in names:
        await ended(manager, guest, one)
    codes = {info.name: info.exit_code for info in await manager.list(guest)}
    assert [codes[one] for one in names] == list(range(crowd))


# --- ending ----------------------------------------------------------------------------------------------------------


async def test_stopping_interrupts_first(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "trap 'echo saved; exit 42' INT; echo ready; while :; do sleep 0.05; done"))
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            assert await anext(pieces) == b"ready\n"
    info = await manager.stop(guest, name, grace=30)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, 42)
    assert await output(manager, guest, name) == b"ready\nsaved\n"


async def test_stopping_kills_what_will_not_end_and_all_that_it_started(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    script = (
        "trap '' INT TERM HUP; (trap '' INT; setsid bash -c 'trap \"\" INT; sleep 1000.75' &) ;"
        " env -i setsid sleep 1000.75 & sleep 1000.75"
    )
    await manager.start(guest, spec(name, script))
    info = await manager.stop(guest, name, grace=1)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, 137)
    await until_gone(guest, "sleep 1000.75")


async def test_stopping_twice_and_stopping_what_has_ended_are_successes(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    await manager.start(guest, spec(name, "exit 3"))
    await ended(manager, guest, name)
    assert (await manager.stop(guest, name)).exit_code == 3
    assert (await manager.stop(guest, name)).exit_code == 3


async def test_stopping_leaves_other_processes_alone(manager: ProcessManager, guest: Guest, name: str) -> None:
    other = f"{name}-other"
    await manager.start(guest, spec(other, "sleep 1000"))
    await manager.start(guest, spec(name, "sleep 1000"))
    await manager.stop(guest, name, grace=0)
    assert (await manager.get(guest, other)).status is ProcessStatus.RUNNING
    await manager.stop(guest, other)


async def test_a_fork_bomb_can_be_stopped(manager: ProcessManager, offer: Offer) -> None:
    # Few enough processes that it is their number that is short, and not the memory of this host's other tests.
    offer = replace(offer, shape=replace(offer.shape, pids=200))
    async with machine(offer) as place, place.guest() as guest:
        await manager.start(guest, spec("bomb", "b() { echo .; b | b & }; b; sleep 1000"))
        # Looked at from the host's side: in the guest there is no room for one who looks.
        said = place.session / "processes" / "bomb" / "err"
        with anyio.fail_after(PATIENCE):
            while b"fork" not in said.read_bytes():  # noqa: ASYNC110
                await anyio.sleep(0.1)
        info = await manager.stop(guest, "bomb", grace=1)
        assert info.status is ProcessStatus.EXITED
        await manager.start(guest, spec("after", "echo alive"))
        assert await output(manager, guest, "after") == b"alive\n"


async def test_unknown_processes_are_errors(manager: ProcessManager, guest: Guest, name: str) -> None:
    for call in (manager.get, manager.stop, manager.logs):
        with pytest.raises(NoSuchProcess):
            await call(guest, name)
    with pytest.raises(NoSuchProcess) as caught:
        await output(manager, guest, name)
    assert (caught.value.context["process"], caught.value.context["operation"]) == (name, "follow")
    assert caught.value.context["machine"]
    await manager.remove(guest, name)


async def test_a_removed_process_is_forgotten_and_a_running_one_is_not(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    await manager.start(guest, spec(name, "sleep 1000"))
    with pytest.raises(ProcessError):
        await manager.remove(guest, name)
    await manager.stop(guest, name, grace=0)
    await manager.remove(guest, name)
    with pytest.raises(NoSuchProcess):
        await manager.get(guest, name)


# --- starting again --------------------------------------------------------------------------------------------------


async def test_a_process_that_ends_is_started_again_as_often_as_it_may(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    await manager.start(guest, spec(name, "echo run; exit 7", restart=Restart(max_restarts=3)))
    info = await ended(manager, guest, name)
    assert (info.status, info.exit_code, info.restarts) == (ProcessStatus.EXITED, 7, 3)
    assert await output(manager, guest, name) == b"run\n" * 4


async def test_a_long_enough_run_resets_the_count(manager: ProcessManager, guest: Guest, name: str) -> None:
    # An emulated VM takes a good part of a second for the shortest of runs.
    script = f"echo x >>/session/{name}.n; [ $(wc -l </session/{name}.n) -lt 3 ] && sleep 4; exit 1"
    await manager.start(guest, spec(name, script, restart=Restart(max_restarts=1, min_uptime=3.5)))
    assert (await ended(manager, guest, name)).restarts == 2


async def test_a_stopped_process_is_not_started_again(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "sleep 1000", restart=Restart(max_restarts=1000, min_uptime=0)))
    info = await manager.stop(guest, name)
    assert (info.status, info.exit_code, info.restarts) == (ProcessStatus.EXITED, 130, 0)


async def test_a_program_that_has_not_begun_yet_hears_of_its_end_when_it_does(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    # Whatever becomes a program ignores the signal until then; this one takes its time.
    begins = "trap '' INT; echo ready; sleep 2; exec env --default-signal=INT sleep 1000"
    await manager.start(guest, spec(name, begins))
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            assert await anext(pieces) == b"ready\n"
    info = await manager.stop(guest, name, grace=30)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, 130)


# --- hostile guests --------------------------------------------------------------------------------------------------


async def test_what_a_guest_forges_in_the_state_is_never_more_than_a_wrong_answer(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    await manager.start(guest, spec(name, "exit 3"))
    await ended(manager, guest, name)
    forge = (
        "cd /session/processes; for f in claim pid exit; do rm -f $1/$f; done; mkfifo $1/exit; "
        "head -c 10000000 /dev/zero >$1/pid; printf '999999999999 x\\n' >$1/claim; "
        "mkdir -p $'new\\nline' \"$2\"; echo '1 1 1.0' | tee $'new\\nline'/claim >\"$2\"/claim;"
        'ln -s /dev/zero "$2"/exit'
    )
    forged = await guest.run(Command(argv=("bash", "-c", forge, "x", name, f"{name} forged")), timeout=PATIENCE)
    assert forged.ok, forged.stderr
    info = await manager.get(guest, name)
    assert (info.status, info.pid) == (ProcessStatus.LOST, None)
    names = {one.name for one in await manager.list(guest)}
    assert name in names and not any("\n" in one or " " in one for one in names)
    clean = "cd /session/processes; rm -rf $'new\\nline' \"$1\""
    await guest.run(Command(argv=("bash", "-c", clean, "x", f"{name} forged")))
