"""A hive with real parts: an engine in namespaces, doors, and the puppet as the agent of its members."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.events import AgentText, AnyBody, Event, TurnEnded
from hiveyard.daemon import resources
from hiveyard.engine.engine import Engine, running
from hiveyard.engine.resources import Resources
from hiveyard.hive.hive import Hive
from hiveyard.hive.mailbox import MessageRequest, Sent
from hiveyard.hive.mcp_server import served
from hiveyard.hive.members import MemberRequest, Members, MemberView, MessageView
from hiveyard.hive.names import OPERATOR
from hiveyard.hive.settings import HiveSettings
from hiveyard.hive.wake_loop import running as running_hive
from tests.engine.conftest import Yard, journal_url, repo, yard
from tests.engine.yards import PATIENCE
from tests.support.live_puppet import NAME, register

__all__ = ["journal_url", "repo", "yard"]


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


@dataclass
class Stage:
    """A running hive, and what a test does with it as the operator."""

    hive: Hive
    engine: Engine
    members: Members
    parts: Resources
    repo: Path

    async def add(self, name: str, prompt: str | None = None, **more: object) -> MemberView:
        """Add a member; return when its session runs."""
        asked = {"repo": str(self.repo), "agent": NAME, "name": name, "prompt": prompt, **more}
        await self.members.add(MemberRequest(**asked))  # type: ignore[arg-type]
        return await self.until(name, lambda view: view.session.status == "running")

    async def send(self, to: str, text: str, *, sender: str = OPERATOR, **more: object) -> Sent:
        request = MessageRequest(to=[to], text=text, **more)  # type: ignore[arg-type]
        return (await self.hive.mailbox.send(sender, request))[0]

    async def until(self, name: str, true: Callable[[MemberView], bool]) -> MemberView:
        """Wait until a member is as it should be."""
        with anyio.fail_after(PATIENCE):
            while not true(view := await self.members.view(name)):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        return view

    async def wait_for(self, true: Callable[[Event], bool]) -> Event:
        """Return the first event of the journal that is as it should be."""
        with anyio.fail_after(PATIENCE):
            async for event in self.engine.follow(None, after=0):
                if true(event):
                    return event
        raise AssertionError

    async def turn_of(self, message: Sent) -> int:
        """Wait until the turn that a message started has ended; return its number."""
        delivered = await self.wait_for(
            lambda event: event.body.type == "message.delivered" and event.body.message == message.id  # type: ignore[union-attr]
        )
        await self.wait_for(
            lambda event: (
                (event.session, event.turn) == (delivered.session, delivered.turn) and isinstance(event.body, TurnEnded)
            )
        )
        assert delivered.turn is not None
        return delivered.turn

    async def session(self, name: str) -> str:
        return (await self.members.view(name)).session.id

    async def said(self, name: str) -> list[str]:
        """Return the texts of a member's agent: for the puppet, the answers of the tools that it called."""
        return [body.text for body in await self.bodies(name) if isinstance(body, AgentText)]

    async def bodies(self, name: str) -> list[AnyBody]:
        session = await self.session(name)
        return [event.body for event in await self.engine.events(session, after=0, limit=10_000)]

    async def mail(self, name: str = OPERATOR) -> list[MessageView]:
        return await self.members.mail(name, limit=1000)

    async def mail_from(self, sender: str) -> MessageView:
        """Return the first message to the operator of a member, once there is one."""
        with anyio.fail_after(PATIENCE):
            while not (found := [one for one in await self.mail() if one.sender == sender]):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        return found[0]


Open = Callable[..., "AsyncIterator[Stage]"]


@asynccontextmanager
async def opened(yard: Yard, repo: Path, **settings: object) -> AsyncIterator[Stage]:
    """Run a hive on what an earlier one left, with these settings."""
    chosen = replace(HiveSettings(asleep_after=0.0), **settings)  # type: ignore[arg-type]
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(resources(yard.paths, yard.settings, yard.environment))
        hive = Hive(parts, chosen, yard.paths.hive)
        await stack.enter_async_context(served(hive, parts.doors, parts.clock))
        engine = await stack.enter_async_context(running(parts))
        members = await stack.enter_async_context(running_hive(hive, engine, parts))
        yield Stage(hive, engine, members, parts, repo)
