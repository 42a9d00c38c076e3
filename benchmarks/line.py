"""How soon a free place is taken by the next in a line of 1,000 tasks, and what waiting costs.

    python -m benchmarks.line [--json] [--tasks N]

The floor is one append to the same journal. The memory and the processor time are those of this process, which holds
the line and the journal as the daemon does.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import anyio
import anyio.lowlevel

from benchmarks._figures import Figures
from hiveyard.core import events as e
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.placement.admission import Admission
from hiveyard.engine.settings import EngineSettings
from hiveyard.kit.clock import SystemClock
from hiveyard.store import views
from hiveyard.store.database import open_store

PLACES = 4
IDLE = 10.0


class Line:
    """A line of tasks. Each ends when it was served; `taken` are the seconds from a free place to its next user."""

    def __init__(self, event_log: EventLog) -> None:
        self.event_log = event_log
        self.admission = Admission(event_log, EngineSettings(max_tasks=PLACES, memory_total_mib=1 << 20))
        self.taken: list[float] = []
        self.appended: list[float] = []
        self.freed = 0.0
        self.held: list[str] = []

    async def create(self, id: str) -> None:
        created = e.SessionCreated(slug=id, repo="/r", agent="command")
        await self.event_log.record(id, e.TaskCreated(slug=id, request={"repo": "/r", "prompt": "p"}), created)

    async def claim(self, id: str) -> None:
        session = await self.event_log.read(lambda conn: views.session(conn, id))
        await self.admission.claim(session, session.created_at, [], is_task=True)
        if self.freed:
            self.taken.append(time.perf_counter() - self.freed)
        self.held.append(id)

    async def free(self) -> None:
        """End one task, and wait until another has its place."""
        before, failure = len(self.taken), e.Failure(code="x", message="x")
        self.freed = time.perf_counter()
        await self.event_log.record(self.held.pop(), e.SessionFailed(failure=failure), e.TaskFailed(failure=failure))
        self.appended.append(time.perf_counter() - self.freed)
        while len(self.taken) == before:
            await anyio.lowlevel.checkpoint()


async def measure(figures: Figures, tasks: int) -> None:
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        async with open_store(Path(scratch) / "journal.db", clock=clock) as store, anyio.create_task_group() as group:
            line = Line(EventLog(store, clock))
            group.start_soon(line.admission.run)
            for number in range(tasks):
                await line.create(f"t{number:05}")
            for number in range(tasks):
                group.start_soon(line.claim, f"t{number:05}")
            while len(line.admission.waiting()) < tasks - PLACES:  # noqa: ASYNC110 (no event tells)
                await anyio.sleep(0.1)
            before = time.process_time()
            await anyio.sleep(IDLE)
            busy = 100 * (time.process_time() - before) / IDLE
            figures.rate(f"processor, {tasks} wait", 1, 1 / busy if busy else float("inf"), unit="%", aim="1")
            figures.mib(f"memory, {tasks} wait", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            for _ in range(min(500, tasks - PLACES)):
                await line.free()
            figures.times("a place is free to it is taken", line.taken, aim="p99 50")
            figures.times("one append (floor)", line.appended)
            group.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = Figures("line")
    anyio.run(measure, figures, options.tasks)
    figures.show(as_json=options.json)


if __name__ == "__main__":
    main()
