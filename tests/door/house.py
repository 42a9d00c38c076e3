"""A house with doors: what a daemon gives to a door, and a guest who stands before it."""

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
from hiveyard.machines.qemu.launch import short

KEY = "sk-real-Zq8TestSecret/+7vXy0123456789abcdef"
PLACEHOLDER = "hv-placeholder-Zq8TestSecret"
E = TypeVar("E")


@dataclass(slots=True)
class Told:
    """The journal, as far as a door knows of one."""

    events: list[tuple[str, int | None, DoorEvent | Notice]] = field(default_factory=list)

    async def record(self, session: str, turn: int | None, event: DoorEvent | Notice) -> None:
        self.events.append((session, turn, event))

    def of(self, kind: type[E]) -> list[E]:
        return [event for _, _, event in self.events if isinstance(event, kind)]


class HeldClock:
    """Stands still until the test sets it."""

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
    told: Told,
    *,
    of: Keys | None = None,
    settings: DoorSettings | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Doors]:
    settings = settings or DoorSettings(anthropic_upstream=url, openai_upstream=url)
    async with Doors(settings, of or keys(), told.record, clock=clock) as opened:
        yield opened


@asynccontextmanager
async def door(url: str, told: Told, directory: Path, **options: object) -> AsyncIterator[Door]:
    """One open door to `url`."""
    shared = {name: options.pop(name) for name in ("of", "settings", "clock") if name in options}
    async with doors(url, told, **shared) as all_doors:  # type: ignore[arg-type]
        one = {"session": "s1", "placeholder": Secret(PLACEHOLDER), "turn": 1, **options}
        async with all_doors.open(directory=directory, **one) as opened:  # type: ignore[arg-type]
            yield opened


@asynccontextmanager
async def guest(opened: Door, *, key: str = PLACEHOLDER) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that stands before a door with a key."""
    headers = {"x-api-key": key, "authorization": f"Bearer {key}"}
    with short(opened.path) as path:
        transport = httpx2.AsyncHTTPTransport(uds=path)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://door", headers=headers, timeout=20
        ) as client:
            yield client


def message(text: str = "hello", *, stream: bool = False, **more: object) -> dict[str, object]:
    """A request for Anthropic's messages."""
    said = [{"role": "user", "content": text}]
    return {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": stream, "messages": said, **more}


async def until(true: Callable[[], bool]) -> None:
    """Wait for what must come about, but not for ever."""
    with anyio.fail_after(20):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await anyio.sleep(0.005)
