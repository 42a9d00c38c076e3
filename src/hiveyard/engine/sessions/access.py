"""Reach a running session or task from outside: a terminal, its ports, ssh."""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread

from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput, SessionNotRunning
from hiveyard.core.ports import Terminals
from hiveyard.engine.access.ssh_keys import config
from hiveyard.engine.placement.machine_lease import machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.ports import SessionPorts
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.sessions.session_agent import LIVE, TERMINAL_MODE, mode_of


class SessionAccess:
    """The ways into a session's machine for the API."""

    def __init__(self, resources: Resources, sessions: Sessions) -> None:
        self._r = resources
        self._sessions = sessions

    async def terminal(self, id: str, command: Command, *, of_agent: bool = False) -> Sequence[str]:
        """Return the command line of a host program that connects the user's terminal to `command` in the session's
        machine; see `Terminals.terminal`. `of_agent`: it shows the agent's own terminal. Raises SessionNotRunning;
        BadInput if there is no such terminal."""
        await self._sessions.check_reachable(id)
        session = await self._sessions.any_row(id)
        if of_agent and (mode := mode_of(session)) != TERMINAL_MODE:
            hint = f"hv attach {session.slug}" if mode == LIVE else f"hv logs -f {session.slug}"
            raise BadInput(f"the agent of {session.slug} is held {mode} and has no terminal", hint=hint)
        provider = self._sessions.provider(session)
        if not isinstance(provider, Terminals):
            raise BadInput(
                f"the provider {session.provider} has no interactive terminals", hint=f"hv logs -f {session.slug}"
            )
        return await provider.terminal(machine_name(id), command)

    async def open_port(self, id: str, guest: int, wanted: int | None) -> int:
        """Forward a host port to a port of the guest; return the host port. Raises PortTaken, NoFreePort, BadInput."""
        return await (await self._ports(id)).open(guest, wanted)

    async def close_port(self, id: str, guest: int) -> None:
        """Stop forwarding to a port of the guest; succeeds if it is not open."""
        await (await self._ports(id)).close(guest)

    async def ssh_config(self, id: str) -> str:
        """Return the configuration with which `ssh hv-NAME` connects to the session. Raises SessionNotRunning for a
        session that has no ssh port yet."""
        seen = await self._sessions.view(id)
        if seen.port is None:
            raise SessionNotRunning(f"{seen.name} has no ssh port yet", hint=f"hv resume {seen.name}")
        user = self._sessions.provider(await self._sessions.any_row(id)).capabilities.user
        keys = await anyio.to_thread.run_sync(self._r.ssh_keys.of, id)
        return config(seen.name, id, seen.port, user, keys)

    async def _ports(self, id: str) -> SessionPorts:
        await self._sessions.check_reachable(id)
        session, runner = await self._sessions.any_row(id), await self._sessions.runner(id)
        if runner.ports is None:
            raise SessionNotRunning(
                f"{session.slug} is a task at work and has no ports", hint=f"hv exec {session.slug} -- COMMAND"
            )
        return runner.ports
