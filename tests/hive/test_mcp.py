"""The tools at the door, called by the official MCP client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client

from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.hive.mcp_server import served
from hiveyard.hive.tools import TOOLS
from hiveyard.kit.secret import Secret
from tests.support.leaks import MARK

from .facts import Facts, facts

pytestmark = pytest.mark.anyio
URL = "http://localhost/mcp"


class Callers:
    """The doors of members, and clients of their tools."""

    def __init__(self, doors: Doors, directory: Path) -> None:
        self._doors = doors
        self._directory = directory

    @asynccontextmanager
    async def http(self, name: str, key_of: str | None = None, **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
        """Yield an HTTP client at the door of a member's session, with the key of another one if `key_of`."""
        directory = self._directory / f"door-{len(list(self._directory.iterdir()))}"
        directory.mkdir()
        door = self._doors.open(session=f"s-{name}", directory=directory, placeholder=Secret(key(name)))
        headers = {"authorization": f"Bearer {key(key_of or name)}", **headers}
        async with door as opened:
            transport = httpx2.AsyncHTTPTransport(uds=str(opened.path))
            async with httpx2.AsyncClient(transport=transport, headers=headers, timeout=60.0) as client:
                yield client

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[Tools]:
        """Yield the tools of a member, as the official client has them."""
        async with (
            self.http(name) as http,
            streamable_http_client(URL, http_client=http) as streams,
            ClientSession(*streams[:2]) as session,
        ):
            told = (await session.initialize()).instructions
            assert told is not None and "The operator's word is an instruction" in told
            yield Tools(session)


class Tools:
    def __init__(self, session: ClientSession) -> None:
        self.session = session

    async def __call__(self, tool: str, **arguments: Any) -> str:
        """Return the text that a tool answers with."""
        text, is_error = await self.answer(tool, **arguments)
        assert not is_error, text
        return text

    async def refused(self, tool: str, **arguments: Any) -> str:
        text, is_error = await self.answer(tool, **arguments)
        assert is_error, text
        return text

    async def answer(self, tool: str, **arguments: Any) -> tuple[str, bool]:
        found = await self.session.call_tool(tool, arguments)
        [content] = found.content
        return content.text, bool(found.is_error)  # type: ignore[union-attr]


def key(name: str) -> str:
    return f"hv-{MARK}-{name}"


@asynccontextmanager
async def served_facts(tmp_path: Path) -> AsyncIterator[tuple[Facts, Callers]]:
    async def record(session: str, turn: int | None, event: object) -> None: ...

    async with AsyncExitStack() as stack:
        hive = await stack.enter_async_context(facts(tmp_path))
        keys = Keys({}, tmp_path / "keys.toml")
        doors = await stack.enter_async_context(Doors(DoorSettings(), keys, record))
        await stack.enter_async_context(served(hive.hive, doors, hive.clock))
        yield hive, Callers(doors, tmp_path)


async def test_the_official_client_calls_each_tool(tmp_path: Path) -> None:
    async with served_facts(tmp_path) as (hive, callers):
        await hive.join("ada", "bob")
        await hive.join("max", role="manager")
        async with callers.of("max") as max:
            listed = (await max.session.list_tools()).tools
            assert {tool.name for tool in listed} == set(TOOLS)
        async with callers.of("ada") as ada, callers.of("bob") as bob:
            assert {tool.name for tool in (await ada.session.list_tools()).tools} == {
                name for name, tool in TOOLS.items() if not tool.for_manager
            }
            assert all(tool.input_schema["type"] == "object" and tool.description for tool in listed)
            assert '"name": "ada"' in await ada("whoami")
            assert '"name": "bob"' in await ada("peers")
            assert (await ada("send", to=["bob", "operator"], text="hello", priority="urgent")).startswith("sent ")
            assert "from ada (member), urgent" in await bob("recv")
            assert await bob("recv") == "no message came"
            ask = (await ada("ask", question="red?", to="bob", options=["yes", "no"])).split()[1]
            assert ask in await bob("open_threads")
            assert await bob("answer", id=ask, answer=["yes"]) == f"answered {ask}: yes"
            assert "answer" in await ada("recv") and "from bob" not in await ada("open_threads")
            reminder = await ada("remind", text="look", **{"in": 60})
            id = reminder.split('"')[3]
            assert id in await ada("reminders") and id not in await bob("reminders")
            assert await ada("cancel_reminder", id=id) == f"cancelled {id}"
            assert await ada("note_status", note="tests") == "noted"
            assert '"note": "tests"' in await bob("peers")
            assert (await ada("nap", seconds=60)).startswith("end your turn now")


async def waiters(hive: Facts, count: int) -> None:
    """Wait until so many calls wait for the mailbox of ada."""
    with anyio.fail_after(60):
        while hive.hive.bells.count("s-ada") != count:  # noqa: ASYNC110 (a connection that ends has no event)
            await anyio.sleep(0.02)


async def test_recv_waits_for_a_message_and_takes_none_for_a_client_that_left(tmp_path: Path) -> None:
    async with served_facts(tmp_path) as (hive, callers):
        await hive.join("ada")
        session = "s-ada"
        async with callers.of("ada") as ada:
            with anyio.move_on_after(0.5):
                await ada("recv", wait_seconds=60)
        await waiters(hive, 0)
        await hive.send("operator", "ada", "early")
        hive.hive.bells.ring(session)
        assert [row.text for row in await hive.waiting("ada")] == ["early"]
        async with callers.of("ada") as ada, anyio.create_task_group() as group:
            assert "early" in await ada("recv")
            answers: list[str] = []

            async def wait() -> None:
                answers.append(await ada("recv", wait_seconds=60))

            group.start_soon(wait)
            await waiters(hive, 1)
            await hive.send("operator", "ada", "late")
            hive.hive.bells.ring(session)
        assert "late" in answers[0]


async def test_what_a_member_may_not_do_is_refused(tmp_path: Path) -> None:
    async with served_facts(tmp_path) as (hive, callers):
        await hive.join("ada", "bob", "eve")
        async with callers.of("ada") as ada, callers.of("eve") as eve:
            ask = (await ada("ask", question="red?", to="bob")).split()[1]
            assert f"the question {ask} was not put to eve" in await eve.refused("answer", id=ask, answer=["x"])
            assert "answers an own question" in await ada.refused("answer", id=ask, answer=["x"])
            assert "cannot write to itself" in await ada.refused("send", to=["ada"], text="x")
            assert "has no field 'sender'" in await eve.refused("send", to=["bob"], text="x", sender="operator")
            assert "no tool 'raise'" in await eve.refused("raise")
            for tool in ("logs", "wake", "start", "stop", "restart"):
                assert f"eve is no manager: only a manager may call {tool}" in await eve.refused(tool, name="bob")
            assert "needs the field 'to'" in await eve.refused("send", text="x")
            assert ask not in await eve("open_threads")
            await hive.send("operator", "bob", "secret word")
            assert await eve("recv") == "no message came"
        async with callers.of("max") as stranger:
            assert "no member of the hive" in await stranger.refused("whoami")


async def test_a_door_takes_only_its_own_key_and_a_page_elsewhere_cannot_use_it(tmp_path: Path) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
    accept = {"accept": "application/json, text/event-stream"}
    async with served_facts(tmp_path) as (hive, callers):
        await hive.join("ada", "eve")
        async with callers.http("ada", key_of="eve", **accept) as wrong:
            assert (await wrong.post(URL, json=call)).status_code == 401
        async with callers.http("ada", **accept) as right:
            assert (await right.post(URL, json=call)).status_code == 200
            assert (await right.post("http://evil.example/mcp", json=call)).status_code == 421
            assert (await right.post(URL, json=call, headers={"origin": "http://evil.example"})).status_code == 403
            assert (await right.post(URL, content=b"{" * 100)).status_code in (400, 415)
