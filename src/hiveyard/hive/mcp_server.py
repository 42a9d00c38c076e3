"""Serve the tools of members at the doors of their sessions, by MCP over streamable HTTP.

The door knows the caller: it has checked the key of its session before a request comes here, and names the session in
the request's scope. Each request stands alone (stateless), so a restart of the daemon breaks no connection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiveyard import __version__
from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.door.doors import Doors
from hiveyard.door.mounts import Mount
from hiveyard.hive.equipment import MCP_NAME, MCP_PATH, instructions
from hiveyard.hive.hive import Hive
from hiveyard.hive.tools import TOOLS, call
from hiveyard.kit.clock import Clock
from hiveyard.kit.text import one_line

log = logging.getLogger(__name__)
_SESSION = "hiveyard.session"
_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
REQUESTS = 64
"""Requests of one member at a time: those that wait in `recv` are among them."""


@asynccontextmanager
async def served(hive: Hive, doors: Doors, clock: Clock) -> AsyncIterator[None]:
    """Serve the tools at each door that is opened while the block lasts."""
    manager = StreamableHTTPSessionManager(
        app=_server(hive, clock), stateless=True, json_response=True, security_settings=_security()
    )
    async with manager.run():
        doors.mount(MCP_PATH, lambda session: Mount(_for_session(manager, session), requests=REQUESTS))
        yield


def _security() -> TransportSecuritySettings:
    """Return which hosts and origins a request may name: a page that rebinds its own name to this address may not."""
    hosts = [*_HOSTS, *(f"{host}:*" for host in _HOSTS)]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True, allowed_hosts=hosts, allowed_origins=[f"http://{host}" for host in hosts]
    )


def _for_session(manager: StreamableHTTPSessionManager, session: str) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with _until_disconnect(receive) as until_then:
            await manager.handle_request({**scope, _SESSION: session}, until_then, send)

    return app


@asynccontextmanager
async def _until_disconnect(receive: Receive) -> AsyncIterator[Receive]:
    """Cancel the block when the guest closes the connection: a `recv` that nobody waits for must take no message."""
    passed_on, messages = anyio.create_memory_object_stream[Message](1)

    async def pass_on() -> None:
        while (message := await receive())["type"] != "http.disconnect":
            await passed_on.send(message)
        group.cancel_scope.cancel()

    with passed_on, messages:
        async with anyio.create_task_group() as group:
            group.start_soon(pass_on, name="watch for the guest hanging up")
            yield messages.receive
            group.cancel_scope.cancel()


def _server(hive: Hive, clock: Clock) -> Server[Any]:
    tools = {
        name: types.Tool(name=name, description=tool.description, input_schema=tool.schema())
        for name, tool in TOOLS.items()
    }

    async def list_tools(
        context: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        manages = await hive.manages(context.request.scope[_SESSION])  # type: ignore[union-attr]
        return types.ListToolsResult(tools=[tools[name] for name in TOOLS if manages or not TOOLS[name].for_manager])

    async def call_tool(
        context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            if params.name not in TOOLS:
                raise BadInput(f"there is no tool {one_line(params.name, 80)!r}", hint="one of: " + ", ".join(TOOLS))
            session = context.request.scope[_SESSION]  # type: ignore[union-attr]
            return _result(await call(hive, session, params.name, params.arguments or {}, clock.now()))
        except HiveyardError as error:
            return _result(error.advice, is_error=True)
        except Exception:
            log.exception("the tool %s failed", one_line(params.name, 80))
            return _result("Hiveyard failed; its log says why", is_error=True)

    # For programs that take no system text. The others read it twice, and learn their name and role there.
    told = instructions("an agent", "member", hive.settings)
    return Server(MCP_NAME, version=__version__, instructions=told, on_list_tools=list_tools, on_call_tool=call_tool)


def _result(text: str, *, is_error: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=is_error)
