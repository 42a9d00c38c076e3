"""Open doors for tests, with a journal and a clock, and connect guests to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import httpx2

from hiveyard.core.events import DoorEvent, Notice
from hiveyard.door.door import Door
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.clock import Clock
from hiveyard.kit.secret import Secret
from hiveyard.machines.qemu.launch import short_path

KEY = "sk-real-Zq8TestSecret/+7vXy0123456789abcdef"
PLACEHOLDER = "hv-placeholder-Zq8TestSecret"
E = TypeVar("E")


@dataclass(slots=True)
class MemoryJournal:
    """A journal in memory, for the events of a door."""

    events: list[tuple[str, int | None, DoorEvent | Notice]] = field(default_factory=list)

    async def record(self, session: str, turn: int | None, event: DoorEvent | Notice) -> None:
        self.events.append((session, turn, event))

    def of(self, kind: type[E]) -> list[E]:
        return [event for _, _, event in self.events if isinstance(event, kind)]


class HeldClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def keys() -> Keys:
    return Keys({"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY})


@asynccontextmanager
async def doors(
    url: str,
    journal: MemoryJournal,
    *,
    of: Keys | None = None,
    settings: DoorSettings | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Doors]:
    settings = settings or DoorSettings(anthropic_upstream=url, openai_upstream=url)
    async with Doors(settings, of or keys(), journal.record, clock=clock) as opened:
        yield opened


@asynccontextmanager
async def door(url: str, journal: MemoryJournal, directory: Path, **options: object) -> AsyncIterator[Door]:
    """Open a door to `url`."""
    shared = {name: options.pop(name) for name in ("of", "settings", "clock") if name in options}
    async with doors(url, journal, **shared) as all_doors:  # type: ignore[arg-type]
        one = {"session": "s1", "placeholder": Secret(PLACEHOLDER), "turn": 1, **options}
        async with all_doors.open(directory=directory, **one) as opened:  # type: ignore[arg-type]
            yield opened


@asynccontextmanager
async def guest(opened: Door, *, key: str = PLACEHOLDER) -> AsyncIterator[httpx2.AsyncClient]:
    """Connect a client to a door, with a key."""
    headers = {"x-api-key": key, "authorization": f"Bearer {key}"}
    with short_path(opened.path) as path:
        transport = httpx2.AsyncHTTPTransport(uds=path)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://door", headers=headers, timeout=20
        ) as client:
            yield client


def message(text: str = "hello", *, stream: bool = False, **more: object) -> dict[str, object]:
    """Return a request to Anthropic's messages endpoint."""
    said = [{"role": "user", "content": text}]
    return {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": stream, "messages": said, **more}


async def until(true: Callable[[], bool]) -> None:
    """Wait until a condition is true, with a timeout."""
    with anyio.fail_after(20):
        while not true():  # noqa: ASYNC110 - the condition has no event
            await anyio.sleep(0.005)
