"""Doors for a program that uses Hiveyard as a library, without a daemon. They are open while its orchestrator is.

    Orchestrator(provider, manager, agent, doors=LocalDoors(os.environ, budget_usd=0.50))

It implements `hiveyard.core.ports.Doors` and does not know the orchestrator.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from hiveyard.core.doors import OpenDoor
from hiveyard.core.errors import BadInput, CredentialsError, DoorError
from hiveyard.core.events import DoorEvent, Notice
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings, from_environment
from hiveyard.kit.secret import Secret

_HINT = "export {variable}=… before the program starts"


class LocalDoors:
    """Doors with the keys and upstreams of `environment` (mostly `os.environ`), which is read once.

    `keys` is a file with more keys, in the format of keys.toml; `account` then names the account that pays. Each
    machine may spend `budget_usd`; None means no limit. `settings` are those of `[door]` in the settings file."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        keys: Path | None = None,
        account: str = "",
        budget_usd: float | None = None,
        settings: DoorSettings | None = None,
    ) -> None:
        if budget_usd is not None and not (budget_usd > 0 and math.isfinite(budget_usd)):
            raise BadInput(f"budget_usd is {budget_usd}: it must be more than 0 dollars, or None for no limit")
        self._keys = Keys(environment, keys, hint=_HINT)
        self._keys.check(account)
        self._account = account
        self._budget = budget_usd
        self._settings = from_environment(settings or DoorSettings(), environment)

    def check(self, protocols: Sequence[str]) -> None:
        """Raise CredentialsError if there is no key for any of them."""
        self._keys.find_any(protocols, self._account)

    def check_agent(self, agent: str) -> None:
        """Raise BadInput if the account is a sign-in, which is only for Claude Code, and the agent is another."""
        with suppress(CredentialsError):  # `check` reports other errors
            self._keys.check_agent(self._account, agent)

    @asynccontextmanager
    async def serving(self, tell: Callable[[str, DoorEvent | Notice], None]) -> AsyncIterator[OpenDoor]:
        async def record(machine: str, _turn: int | None, event: DoorEvent | Notice) -> None:
            tell(machine, event)

        async with Doors(self._settings, self._keys, record) as doors:

            def open_door(machine: str, directory: Path, placeholder: Secret) -> AbstractAsyncContextManager[object]:
                return self._open(doors, machine, directory, placeholder)

            yield open_door

    @asynccontextmanager
    async def _open(self, doors: Doors, machine: str, directory: Path, placeholder: Secret) -> AsyncIterator[None]:
        opening = doors.open(
            session=machine,
            directory=directory,
            placeholder=placeholder,
            account=self._account,
            budget_usd=self._budget,
        )
        async with AsyncExitStack() as opened:
            try:
                await opened.enter_async_context(opening)
            except OSError as error:
                raise DoorError(f"no door can be opened in {directory}: {error.strerror}") from error
            yield
