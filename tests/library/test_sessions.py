"""An agent's process in a prepared machine."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import pytest

from hiveyard.core.commands import ProcessStatus
from hiveyard.core.errors import OperationFailed
from hiveyard.core.machines import HOST
from hiveyard.library import Defaults, events
from hiveyard.processes.tmux import Tmux
from tests.library.parts import PLACEHOLDER, Yards

pytestmark = pytest.mark.anyio

PROMPT = "say \"hello\" & 'goodbye'\n\n$(touch hacked) `id` \\ ü😀\n"


async def test_a_session_runs_with_its_prompt_and_its_output_is_followed_to_the_end(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST)
    turn = ready.turn("echo", command="cat; pwd; ls -A; echo $ANTHROPIC_API_KEY >&2", placeholder=PLACEHOLDER)
    started = await yard.start_session(ready.machine, turn, prompt=PROMPT)
    assert started.name == "echo"
    output = b"".join([piece async for piece in yard.follow(ready.machine, "echo")])
    assert output.decode() == PROMPT + "/session/work\n"
    assert await yard.logs(ready.machine, "echo", lines=1) == b"/session/work\n"
    # The process's own output is the caller's: nothing is taken out of it.
    assert await yard.logs(ready.machine, "echo", stream="stderr") == PLACEHOLDER.encode() + b"\n"
    (ended,) = await yard.processes(ready.machine)
    assert (ended.name, ended.status, ended.exit_code) == ("echo", ProcessStatus.EXITED, 0)
    await yard.terminate(ready.machine)
    session = next(event for event in yards.events if isinstance(event, events.SessionStarted))
    assert (session.machine, session.process, session.agent, session.manager, session.pid) == (
        ready.machine.name,
        "echo",
        "command",
        "detached",
        started.pid,
    )


async def test_several_sessions_of_a_machine_share_work_tree_and_state_and_are_stopped_one_by_one(yards: Yards) -> None:
    yard = yards.yard(Tmux())
    ready = await yard.boot_and_prepare(HOST)
    first = ready.turn("first", command="echo made > file; sleep 1000")
    second = ready.turn("second", command="until [ -e file ]; do sleep 0.1; done; cat file; sleep 1000")
    for turn in (first, second):
        await yard.start_session(ready.machine, turn, prompt="")
    async with aclosing(yard.follow(ready.machine, "second")) as pieces:
        assert (await anext(pieces)).strip() == b"made"
    stopped = await yard.stop(ready.machine, "first", grace=1)
    assert stopped.status is ProcessStatus.EXITED
    assert {one.name: one.status for one in await yard.processes(ready.machine)} == {
        "first": ProcessStatus.EXITED,
        "second": ProcessStatus.RUNNING,
    }
    await yard.terminate(ready.machine)
    assert yards.told()[-4:] == ["session_started", "session_started", "process_stopped", "machine_terminated"]


async def test_a_turn_without_a_name_gets_a_unique_one_with_its_agent(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST)
    for _ in range(2):
        await yard.start_session(ready.machine, ready.turn(command="true"), prompt="")
    first, second = [one.name for one in await yard.processes(ready.machine)]
    assert first != second
    assert first.startswith("command-")
    assert second.startswith("command-")
    await yard.terminate(ready.machine)


async def test_turns_use_the_defaults_unless_overridden(yards: Yards) -> None:
    yard = yards.yard(defaults=Defaults(model="one", ask=True, system="Be brief."))
    ready = await yard.boot_and_prepare(HOST)
    turn = ready.turn()
    assert (turn.model, turn.ask, turn.system) == ("one", True, "Be brief.")
    turn = ready.turn(model="two", ask=False, system="")
    assert (turn.model, turn.ask, turn.system) == ("two", False, "")
    await yard.terminate(ready.machine)


async def test_a_failed_operation_on_a_process_keeps_the_machine(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST)

    async def follow() -> None:
        async for _ in yard.follow(ready.machine, "nobody"):
            pass

    with anyio.fail_after(60):
        for operation, call in (
            ("logs", lambda: yard.logs(ready.machine, "nobody")),
            ("stop", lambda: yard.stop(ready.machine, "nobody")),
            ("follow", follow),
        ):
            with pytest.raises(OperationFailed, match="no process nobody") as caught:
                await call()
            assert caught.value.context == {
                "machine": ready.machine.name,
                "process": "nobody",
                "operation": operation,
                "cause": "process.unknown",
            }
    assert await yard.processes(ready.machine) == []
    await yard.terminate(ready.machine)
    with pytest.raises(OperationFailed, match="no machine") as caught:
        await yard.processes(ready.machine)
    assert caught.value.context["cause"] == "machine.unknown"
