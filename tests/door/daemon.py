"""Run a daemon with one door as a process that a test can kill: `python daemon.py URL DIRECTORY`.

The variables KEY and PLACEHOLDER have the keys: command lines are logged.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

from hiveyard.core.events import DoorEvent, Notice
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.secret import Secret


async def serve(url: str, directory: Path, key: str, placeholder: str) -> None:
    async def record(_session: str, _turn: int | None, event: DoorEvent | Notice) -> None:
        print(event.type, flush=True)

    doors = Doors(DoorSettings(anthropic_upstream=url), Keys({"ANTHROPIC_API_KEY": key}), record)
    async with doors, doors.open(session="s1", directory=directory, placeholder=Secret(placeholder)):
        print("open", flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(serve, sys.argv[1], Path(sys.argv[2]), os.environ["KEY"], os.environ["PLACEHOLDER"])
