"""Tool servers, system text and variables of a session: the agent gets them, and no secret value is written down."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.core.events import BudgetSet, ModelChosen, SessionChanged, SessionCreated
from hiveyard.core.tools import ToolServer
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.change import SessionChange
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.snapshots.fork import ForkRequest
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.kit.secret import Secret
from tests.engine.conftest import Yard, done, git
from tests.engine.sessions.test_live import ACP_PROGRAM, live
from tests.engine.yards import answer, events, run_turn, wait_until
from tests.support.leaks import MARK, marked_files
from tests.support.live_puppet import NAME, register

pytestmark = pytest.mark.anyio
WORD = f"{MARK}-of-a-variable"
TOKEN = f"Bearer {MARK}-of-a-header"
DOCS = ToolServer(url="http://127.0.0.1:1/mcp", headers={"Authorization": Secret(TOKEN)})
NUMBERS = ToolServer(command="python3", args=["numbers.py"], env={"SEED": Secret(WORD)})


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def given(engine: Engine, id: str, name: str) -> str:
    """Return the variable of the agent's process."""
    return (await run_turn(engine, id, f"given {name}")).removeprefix("given: ")[::-1]


def asked(**more: Any) -> dict[str, Any]:
    return {"env": {"WORD": Secret(WORD)}, "mcp": {"docs": DOCS, "numbers": NUMBERS}, "system": "Be brief.", **more}


async def test_values_reach_the_agent_and_stay_over_a_stop_a_restart_and_a_fork(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, **asked())
        assert await given(engine, id, "WORD") == WORD
        assert await given(engine, id, "HIVEYARD_MCP_0_0") == TOKEN
        assert await given(engine, id, "PUPPET_TOOLS") == "docs numbers"
        assert await given(engine, id, "PUPPET_SYSTEM") == "Be brief."
        [child] = (await engine.forks.fork(id, ForkRequest())).children
        await wait_until(engine, child, lambda view: view.status == "running")
        assert await given(engine, child, "WORD") == WORD
        await engine.sessions.stop(id)
    async with yard.open() as engine:
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await given(engine, id, "HIVEYARD_MCP_1_0") == WORD
        for one in (child, id):
            await engine.remove(one, force=True)


async def test_values_are_in_one_private_file_only(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, **asked(prompt="say 1 1"))
        file = yard.paths.sessions / id / "values.json"
        assert file.stat().st_mode & 0o777 == 0o600
        assert MARK.encode() in file.read_bytes()
        assert marked_files(yard.home) == [], "it is the only file that may have them"
        [created] = [one.body for one in await events(engine, id, "session.created")]
        assert isinstance(created, SessionCreated)
        assert created.request is not None
        assert created.request["env"] == {"WORD": "***"}
        assert created.request["mcp"]["docs"]["headers"] == {"Authorization": "***"}
        await engine.sessions.stop(id)
        await engine.exports.export(id, yard.home / "session.hv")
        assert MARK.encode() not in gzip.decompress((yard.home / "session.hv").read_bytes())
        await engine.remove(id, force=True)


async def test_an_imported_session_asks_for_the_values_that_it_lacks(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, **asked())
        await engine.sessions.stop(id)
        await engine.exports.export(id, yard.home / "session.hv")
        await engine.remove(id, force=True)
        await engine.imports.import_archive(yard.home / "session.hv")
        with pytest.raises(BadInput, match="this host does not have the value of the variable WORD") as missing:
            await engine.sessions.resume(id)
        assert missing.value.hint == f"hv resume {id} --env WORD"
        with pytest.raises(BadInput, match="does not have the values of the tool server docs"):
            await engine.sessions.resume(id, SessionChange(env={"WORD": Secret(f"{MARK}new")}))
        change = SessionChange(env={"WORD": Secret(f"{MARK}new")}, mcp={"docs": DOCS, "numbers": NUMBERS})
        await engine.sessions.resume(id, change)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await given(engine, id, "WORD") == f"{MARK}new"
        await engine.remove(id, force=True)


async def test_an_imported_session_has_no_tool_server_outside_of_its_closed_machine(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        outside = ToolServer(url="http://example.org/mcp", headers={"Authorization": Secret(TOKEN)})
        mcp = {"outside": outside, "inside": ToolServer(command="cat")}
        id = await live(engine, repo, network="open", mcp=mcp)
        await engine.sessions.stop(id)
        await engine.exports.export(id, yard.home / "session.hv")
        await engine.remove(id, force=True)
        await engine.imports.import_archive(yard.home / "session.hv")
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await given(engine, id, "PUPPET_TOOLS") == "inside"
        await engine.remove(id, force=True)


async def test_a_task_gets_them_and_its_session_goes_on_with_them(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(TaskRequest(repo=str(repo), agent=NAME, prompt="given WORD", **asked()))
        assert (await done(engine, id)).status == "completed"
        assert WORD[::-1] in await answer(engine, id, 1)
        assert await given(engine, id, "WORD") == WORD
        await engine.remove(id, force=True)


async def test_a_resume_changes_the_request_by_one_event_with_the_changed_fields_only(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, model="small", env={"WORD": Secret(WORD), "COLOUR": Secret(f"{MARK}blue")})
        refused = SessionChange(system="Be loud.")
        with pytest.raises(BadInput, match="only its budget can be changed now"):
            await engine.sessions.resume(id, refused)
        await engine.steering.choose_model(id, "large")
        await engine.sessions.stop(id)
        change = SessionChange(budget_usd=3.0, system="Be loud.", env={"COLOUR": Secret(f"{MARK}red")})
        await engine.sessions.resume(id, change)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await given(engine, id, "COLOUR") == f"{MARK}red"
        assert await given(engine, id, "WORD") == WORD
        assert await given(engine, id, "PUPPET_SYSTEM") == "Be loud."
        assert (await engine.sessions.view(id)).budget_usd == 3.0
        assert await run_turn(engine, id, "model") == "model: large"
        chosen, changed = [one.body for one in await events(engine, id, "session.changed")]
        assert isinstance(chosen, SessionChanged)
        assert isinstance(changed, SessionChanged)
        assert chosen.fields == {"model": "large"}
        env = {"WORD": "***", "COLOUR": "***"}
        assert changed.fields == {"budget_usd": 3.0, "system": "Be loud.", "env": env}
        await engine.remove(id, force=True)


async def test_changes_in_an_older_journal_count(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, model="small")
        await engine.sessions.stop(id)
        await engine.sessions._r.event_log.record(id, BudgetSet(dollars=4.0), ModelChosen(model="older"))
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert (await engine.sessions.view(id)).budget_usd == 4.0
        assert await run_turn(engine, id, "model") == "model: older"
        await engine.remove(id, force=True)


async def test_an_acp_program_gets_its_tool_servers(yard: Yard, repo: Path) -> None:
    (repo / "agent.py").write_text(ACP_PROGRAM.read_text())
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "an agent")
    async with yard.open() as engine:
        words = {"agent": "acp", "command": "python3 -u agent.py", "mcp": {"docs": DOCS, "numbers": NUMBERS}}
        id = await engine.sessions.spawn(SpawnRequest(repo=str(repo), **words))  # type: ignore[arg-type]
        await wait_until(engine, id, lambda view: view.status == "running")
        docs, numbers = json.loads((await run_turn(engine, id, "servers")).removeprefix("you said: ")[::-1])
        assert docs["headers"] == [{"name": "Authorization", "value": TOKEN}]
        assert numbers["args"] == ["numbers.py"]
        assert numbers["env"] == [{"name": "SEED", "value": WORD}]
        await engine.remove(id, force=True)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"env": {"HOME": Secret(f"{MARK}/")}}, "the variable HOME is set by Hiveyard"),
        ({"env": {"ANTHROPIC_API_KEY": Secret(f"{MARK}k")}}, "the variable ANTHROPIC_API_KEY is set by Hiveyard"),
        ({"env": {"PUPPET_TOOLS": Secret(f"{MARK}k")}}, "the variable PUPPET_TOOLS is set by Hiveyard"),
        ({"env": {"A B": Secret(f"{MARK}k")}}, "'A B' is not a valid name of an environment variable"),
        ({"env": {"A": Secret(f"{MARK}\0")}}, "the value of A contains a NUL character"),
        ({"env": {"A": Secret(MARK * 5000)}}, "the environment variables have 65001 bytes; the limit is 60000"),
        ({"mcp": {"a": ToolServer()}}, "the tool server a needs either a url or a command"),
        ({"mcp": {"a b": DOCS}}, "'a b' is not a valid name of a tool server"),
        ({"mcp": {"a": ToolServer(url="ftp://host/")}}, "is not a http:// or https:// address"),
        ({"mcp": {"a": ToolServer(url=f"https://me:{MARK}@host/")}}, "is not a http:// or https:// address"),
        ({"mcp": {"a": ToolServer(url="https://host/mcp")}}, "the machine cannot reach the tool server a"),
        ({"mcp": {"a": ToolServer(url="http://localhost/", args=["x"])}}, "so it cannot have args and env"),
        ({"mcp": {"a": ToolServer(command="x", headers={"A": Secret(f"{MARK}b")})}}, "so it cannot have headers"),
        (
            {"mcp": {"a": ToolServer(url="http://localhost/", headers={"A": Secret(f"{MARK}b\n")})}},
            "a control character",
        ),
        ({"mcp": {"a": ToolServer(command="x", tools=["a b"])}}, "not a valid name of a tool"),
    ],
)
async def test_a_bad_request_is_refused_without_its_values(
    fields: dict[str, Any], complaint: str, yard: Yard, repo: Path
) -> None:
    async with yard.open() as engine:
        with pytest.raises(HiveyardError, match=complaint):
            await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME, **fields))
