"""Machines of a library user have doors: models are asked through them, and the key stays on this side."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.agents.claude.adapter import Claude
from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command, Result
from hiveyard.core.errors import BadInput, NotPrepared, OrchestrationError
from hiveyard.core.events import BudgetExhausted, DoorEvent, DoorRefused, ModelCalled, ModelFailed, Notice
from hiveyard.core.machines import HOST, Machine, MachineSpec
from hiveyard.core.ports import Agent
from hiveyard.door.local_doors import LocalDoors
from hiveyard.images.images import Images
from hiveyard.kit.secret import Secret
from hiveyard.library import Orchestrator, Prepared
from hiveyard.library.events import DoorReported
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.machines.morph import MorphProvider, MorphSettings, morph_image
from hiveyard.paths import default_paths
from hiveyard.processes.detached import Detached
from hiveyard.testing.model import ScriptedModel, scripted_model
from hiveyard.testing.script import Script, Step, Tokens, say, shell
from tests.library.parts import Yards, profile
from tests.support.leaks import Said, forms

pytestmark = pytest.mark.anyio

KEY = "sk-ant-real-Zq8TestSecret/+7vXy0123456789?&=door"
ASK = """
curl -sS "$ANTHROPIC_BASE_URL/v1/messages" -H "x-api-key: $ANTHROPIC_API_KEY" -H 'content-type: application/json' \
  -d '{"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}'
"""


@pytest.fixture(autouse=True)
def _key_is_never_said(said: Said) -> Iterator[None]:
    yield
    said.none_of([KEY])


@asynccontextmanager
async def upstream(*steps: Step) -> AsyncIterator[ScriptedModel]:
    """A vendor that takes the real key and no other."""
    async with scripted_model(list(steps) or [say("Hello.")], key=KEY, side_reply=None) as model:
        yield model


def local_doors(model: ScriptedModel, **more: object) -> LocalDoors:
    where = {"ANTHROPIC_API_KEY": KEY, "HIVEYARD_ANTHROPIC_UPSTREAM": f"{model.url}/anthropic"}
    return LocalDoors(where, **more)  # type: ignore[arg-type]


def told(yards: Yards, machine: Machine) -> list[DoorEvent | Notice]:
    return [one.fact for one in yards.events if isinstance(one, DoorReported) and one.machine == machine.name]


async def asked(yard: Orchestrator, ready: Prepared, name: str = "ask", *, placeholder: str = "") -> str:
    """Return a model's answer to the machine's agent."""
    await yard.start_session(ready.machine, ready.turn(name, command=ASK, placeholder=placeholder), prompt="")
    said = b"".join([piece async for piece in yard.follow(ready.machine, name)])
    return said.decode() + (await yard.logs(ready.machine, name, stream="stderr")).decode()


async def in_guest(yards: Yards, machine: Machine, script: str) -> Result:
    async with yards.provider.guest(machine.name) as guest:
        return await guest.run(Command(argv=("bash", "-c", script)))


async def test_a_machine_calls_a_model_with_its_placeholder_and_the_hosts_key(yards: Yards) -> None:
    async with upstream() as model:
        async with yards.yard(doors=local_doors(model)) as yard:
            ready = await yard.boot_and_prepare(HOST)
            assert "Hello." in await asked(yard, ready)
            await yard.terminate(ready.machine)
        assert ready.placeholder and model.saw_key(KEY) and not model.saw_key(ready.placeholder.reveal())
    (called,) = told(yards, ready.machine)
    assert isinstance(called, ModelCalled) and called.usage.requests == 1 and (called.usage.cost_usd or 0) > 0
    assert yards.told()[-2:] == ["door_reported", "machine_terminated"]


async def test_each_door_accepts_only_its_own_placeholder(yards: Yards) -> None:
    async with upstream() as model, yards.yard(doors=local_doors(model)) as yard:
        first, second = await yard.boot_and_prepare(HOST), await yard.boot_and_prepare(HOST)
        assert first.placeholder and second.placeholder and first.placeholder != second.placeholder
        assert "authentication_error" in await asked(yard, second, placeholder=first.placeholder.reveal())
        assert [type(fact) for fact in told(yards, second.machine)] == [DoorRefused]
        assert "Hello." in await asked(yard, second, "again")
        assert not told(yards, first.machine)
        for ready in (first, second):
            await yard.terminate(ready.machine)


async def test_a_placeholder_can_be_passed_in(yards: Yards) -> None:
    """Profiles of programs, and programs in a snapshot."""
    async with upstream() as model, yards.yard(doors=local_doors(model)) as yard:
        ready = await yard.boot_and_prepare(HOST, placeholder=Secret("hv-Zq8TestSecret-chosen-by-me"))
        assert "Hello." in await asked(yard, ready, placeholder="hv-Zq8TestSecret-chosen-by-me")
        await yard.terminate(ready.machine)


async def test_a_spent_budget_stops_further_requests(yards: Yards) -> None:
    step = say("Hello.")
    dear = Step(text="Hello.", usage=Tokens(input=1_000_000, output=1))
    async with upstream(dear, step) as model, yards.yard(doors=local_doors(model, budget_usd=0.5)) as yard:
        ready, other = await yard.boot_and_prepare(HOST), await yard.boot_and_prepare(HOST)
        assert "Hello." in await asked(yard, ready)
        assert "the budget of $0.50 for this session is spent" in await asked(yard, ready, "again")
        assert [type(fact) for fact in told(yards, ready.machine)] == [ModelCalled, BudgetExhausted]
        assert "Hello." in await asked(yard, other), "each machine has money of its own"
        for one in (ready, other):
            await yard.terminate(one.machine)


async def test_a_refused_key_is_reported_without_the_key(yards: Yards) -> None:
    refusing = scripted_model([say("never said")], key="another key")
    async with refusing as model, yards.yard(doors=local_doors(model)) as yard:
        ready = await yard.boot_and_prepare(HOST)
        answer = await asked(yard, ready)
        await yard.terminate(ready.machine)
    assert not any(form in answer for form in forms(KEY))
    (failed,) = told(yards, ready.machine)
    assert isinstance(failed, ModelFailed) and failed.failure.code == "credentials.key_refused"


async def test_a_missing_key_is_an_error_before_the_boot(yards: Yards, said: Said) -> None:
    yard = Orchestrator(yards.provider, Detached(), Claude(), on_event=yards.hear, doors=LocalDoors({}))
    async with yard:
        with pytest.raises(NotPrepared) as caught:
            await yard.boot_and_prepare(HOST)
    said.add_error(caught.value)
    assert "there is no key for anthropic: ANTHROPIC_API_KEY was not set at start" in caught.value.message
    assert caught.value.hint == "export ANTHROPIC_API_KEY=… before the program starts"
    assert caught.value.context["cause"] == "credentials.key_missing"
    assert yards.told() == ["boot_started", "preparation_failed", "machine_terminated"]


@pytest.mark.parametrize(
    ("protocols", "environment", "ok"),
    [
        (("anthropic", "openai"), {"OPENAI_API_KEY": "sk-Zq8TestSecret-one-of-two"}, True),
        (("anthropic",), {"OPENAI_API_KEY": "sk-Zq8TestSecret-of-another"}, False),
        ((), {}, True),
    ],
)
async def test_one_of_the_keys_that_an_agent_can_use_is_enough(
    protocols: tuple[str, ...], environment: dict[str, str], ok: bool
) -> None:
    doors = LocalDoors(environment)
    if ok:
        doors.check(protocols)
    else:
        with pytest.raises(Exception, match="no key for anthropic"):
            doors.check(protocols)


async def test_an_account_from_a_file_is_used(yards: Yards) -> None:
    keys = yards.scratch / "keys.toml"
    keys.write_text(f'[accounts.work]\nanthropic = "{KEY}"\n')
    keys.chmod(0o600)
    async with upstream() as model:
        where = {"ANTHROPIC_API_KEY": "sk-Zq8TestSecret-of-another", "HIVEYARD_ANTHROPIC_UPSTREAM": model.url}
        async with yards.yard(doors=LocalDoors(where, keys=keys, account="work")) as yard:
            ready = await yard.boot_and_prepare(HOST)
            assert "Hello." in await asked(yard, ready)
            await yard.terminate(ready.machine)
    with pytest.raises(BadInput, match="there is no account 'wrok'"):
        LocalDoors({}, keys=keys, account="wrok")


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf")])
async def test_a_budget_is_an_amount_of_money(budget: float) -> None:
    with pytest.raises(BadInput, match=f"budget_usd is {budget}"):
        LocalDoors({}, budget_usd=budget)


async def test_an_impossible_door_is_refused_before_anything_is_made(yards: Yards) -> None:
    doors = LocalDoors({"ANTHROPIC_API_KEY": KEY})
    with pytest.raises(BadInput, match="the orchestrator is not open"):
        await yards.yard(doors=doors).boot_and_prepare(HOST)
    with pytest.raises(BadInput, match="a placeholder needs a door"):
        await yards.yard().boot_and_prepare(HOST, placeholder=Secret("hv-Zq8TestSecret-chosen-by-me"))
    async with yards.yard(doors=doors) as yard:
        with pytest.raises(BadInput, match="the spec has a door"):
            await yard.boot_and_prepare(MachineSpec(image=HOST, door=yards.scratch))
    morph = MorphProvider(
        yards.scratch / "morph", lambda: Secret("morph_Zq8TestSecret"), MorphSettings(url="http://127.0.0.1:9")
    )
    async with Orchestrator(morph, Detached(), CommandLine(), doors=doors) as yard:
        with pytest.raises(BadInput, match="machines of morph have no door"):
            await yard.boot_and_prepare(morph_image("any"))
    assert not yards.events


async def test_a_door_is_private_and_is_removed_with_its_machine(yards: Yards) -> None:
    async with upstream() as model, yards.yard(doors=local_doors(model)) as yard:
        ready = await yard.boot_and_prepare(HOST)
        (socket,) = Path(tempfile.gettempdir()).glob("*/door/door.sock")
        assert stat.S_IMODE(socket.parents[1].stat().st_mode) == 0o700
        await yard.terminate(ready.machine)
        assert not socket.parents[1].exists()


async def test_a_failure_after_the_door_was_opened_closes_it(yards: Yards, said: Said) -> None:
    async with upstream() as model, yards.yard(doors=local_doors(model)) as yard:
        failing = profile(check=Command(shell="printenv >&2; exit 3"))
        with pytest.raises(NotPrepared) as caught:
            await yard.boot_and_prepare(HOST, credential_profiles=[failing])
        said.add_error(caught.value)
        assert list(Path(tempfile.gettempdir()).iterdir()) == []


async def test_leaving_closes_the_doors_of_machines_that_stay(yards: Yards) -> None:
    """And cuts who stands in one: an answer that does not come holds nobody up."""
    slow = Step(text="Hello.", gate="never")
    async with upstream(slow) as model:
        async with yards.yard(doors=local_doors(model)) as yard:
            ready = await yard.boot_and_prepare(HOST)
            await yard.start_session(ready.machine, ready.turn("ask", command=ASK), prompt="")
            while not model.requests:  # noqa: ASYNC110 - what is waited for has no event
                await anyio.sleep(0.01)
            (socket,) = Path(tempfile.gettempdir()).glob("*/door/door.sock")
        assert not socket.exists()
        assert await yards.provider.names() == {ready.machine.name}
        await yard.terminate(ready.machine)


async def test_cancellation_leaves_no_door(yards: Yards) -> None:
    slow = Step(text="Hello.", gate="never")
    async with upstream(slow) as model:

        async def work() -> None:
            async with yards.yard(doors=local_doors(model)) as yard:
                ready = await yard.boot_and_prepare(HOST)
                yards.expected.add(ready.machine.name)
                await asked(yard, ready)

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            while not model.requests:  # noqa: ASYNC110 - what is waited for has no event
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert list(Path(tempfile.gettempdir()).glob("*/door/door.sock")) == []


async def test_an_unreachable_upstream_is_reported(yards: Yards) -> None:
    where = {"ANTHROPIC_API_KEY": KEY, "HIVEYARD_ANTHROPIC_UPSTREAM": "http://127.0.0.1:9"}
    async with yards.yard(doors=LocalDoors(where)) as yard:
        ready = await yard.boot_and_prepare(HOST)
        assert "error" in await asked(yard, ready)
        await yard.terminate(ready.machine)
    assert {type(fact) for fact in told(yards, ready.machine)} == {ModelFailed}


# --- the real program ---------------------------------------------------------------------------------------------

LOOK = "printenv; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; ps axww 2>/dev/null; true"


@pytest.mark.real
async def test_a_real_claude_works_through_the_door_and_finds_no_key(yards: Yards, said: Said) -> None:
    image = await Images(default_paths().cache).ensure("default")
    yards.provider = BubblewrapProvider(yards.scratch / "m", default_paths().cache / "bubblewrap")
    script: Script = [shell(LOOK, text="I look for a key."), say("There is none.")]
    agent: Agent = Claude()
    async with upstream(*script) as model:
        doors = local_doors(model, budget_usd=5.0)
        async with Orchestrator(yards.provider, Detached(), agent, on_event=yards.hear, doors=doors) as yard:
            ready = await yard.boot_and_prepare(image)
            await yard.start_session(ready.machine, ready.turn("cc-work"), prompt="Look for a \"key\" & tell 'me'.\n")
            raw = b"".join([piece async for piece in yard.follow(ready.machine, "cc-work")])
            parser = agent.parser()
            for line in raw.splitlines():
                parser.feed(line)
            (process,) = await yard.processes(ready.machine)
            complaints = (await yard.logs(ready.machine, "cc-work", stream="stderr")).decode()
            verdict = parser.verdict(process.exit_code, complaints)
            assert verdict.ok, (verdict, complaints)
            everything = await in_guest(yards, ready.machine, LOOK + "; tar -cf - ~ /session /tmp /run 2>/dev/null")
            said.add(raw.decode())
            said.add(complaints)
            said.add(everything.stdout.decode("utf-8", "replace"))
            assert ready.placeholder and ready.placeholder.reveal() in raw.decode(), "it looked where a key would be"
            assert "state/claude/" in said.lines[-1], "its own files are among what is searched"
            await yard.terminate(ready.machine)
        assert model.saw_key(KEY) and b"There is none." in raw
    facts = told(yards, ready.machine)
    assert len([one for one in facts if isinstance(one, ModelCalled)]) == len(model.requests) >= 2


async def test_without_a_socket_directory_nothing_is_booted(yards: Yards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(yards.scratch / "nowhere"))
    async with yards.yard(doors=LocalDoors({"ANTHROPIC_API_KEY": KEY})) as yard:
        with pytest.raises(OrchestrationError, match="cannot make a temporary directory"):
            await yard.boot_and_prepare(HOST)
    monkeypatch.undo()
