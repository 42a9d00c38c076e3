"""A real agent forked in the middle of a turn, as a person does it: how long it stands still, when its children go on,
and what all of them take beside as many that were booted whole.

    python -m benchmarks.live [--json] [--children N] [--agent NAME]

The model stops in the middle of an answer, so all agents wait there when the memory is looked at. A child has lost its
connection, and asks again: that is the first that its agent does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import start_blocking_portal

from benchmarks._figures import Figure, Figures
from benchmarks._timed import Timed, tell
from benchmarks._yard import Yard, yard
from benchmarks.forks import memory
from hiveyard.testing.model import ScriptedModel, scripted_model
from hiveyard.testing.script import Step, say, shell

PROMPT = "[[script:think]] think"
SCRIPTS = {
    "think": [shell("echo before > before.txt"), Step(text="A long thought. " * 20, gate="thought")],
    "own": [say("I did my own.")],
}
PATIENCE = 1800.0
Event = dict[str, Any]


class Agents:
    """Sessions of one installation, whose agents ask a model that stops in the middle of its answer."""

    def __init__(self, home: Yard, model: ScriptedModel, agent: str) -> None:
        self.home = home
        self._model = model
        self._agent = agent
        self._repo = home.repository(20)
        home.env |= {"ANTHROPIC_API_KEY": "sk-ant-of-nobody-at-all"}
        home.env |= {f"HIVEYARD_{vendor}_UPSTREAM": model.url for vendor in ("ANTHROPIC", "OPENAI")}

    def spawn(self) -> str:
        done = self.home.hv("spawn", str(self._repo), "--agent", self._agent, "--prompt", PROMPT)
        if done.returncode != 0:
            raise RuntimeError(f"hv spawn ended with {done.returncode}: {done.stderr.decode()[-600:]}")
        return done.stdout.decode().split()[-1]

    def waiting(self) -> int:
        """How often the answer was asked for that stops in its middle."""
        return sum(not one.side and one.step == 1 and one.prompt == PROMPT for one in self._model.requests)

    def events(self, id: str, kind: str) -> list[Event]:
        found = [json.loads(line) for line in self.home.hv("events", id).stdout.splitlines()]
        return [event for event in found if event["body"]["type"] == kind]

    def first(self, id: str, kind: str) -> Event:
        until(lambda: bool(self.events(id, kind)), f"{id}: no {kind}")
        return self.events(id, kind)[0]


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} within {PATIENCE:.0f}s")
        time.sleep(0.05)


def forked(figures: Figures, agents: Agents, go_on: Callable[[], None], count: int) -> Figure:
    """The figures of a fork; the last is the memory of all of them."""
    still, ready, runs = Timed("parent stands still"), Timed("snapshot to a child's machine"), Timed("to a child runs")
    asks, alike = Timed("to all children ask the model again"), Timed("to all have ended both turns")
    parent = agents.spawn()
    until(lambda: agents.waiting() == 1, "the parent did not ask")
    tell("the agent waits for its model; it is forked now")
    alone = figures.mib("memory of the parent alone", memory(f"hv-{parent}"))
    children = agents.home.json("fork", parent, "-n", str(count), "-m", "[[script:own]] now your own")["children"]
    until(lambda: agents.waiting() == 1 + count, "the children did not ask")
    asked = time.time()
    taken = agents.first(parent, "snapshot.taken")
    still.seconds.append(taken["body"]["seconds"])
    asks.seconds.append(asked - taken["at"])
    for child in children:
        ready.seconds.append(agents.first(child, "machine.ready")["at"] - taken["at"])
        runs.seconds.append(agents.first(child, "session.running")["at"] - taken["at"])
    taken_by_all = memory(*(f"hv-{id}" for id in (parent, *children)))
    every = figures.mib(f"memory of it and {count} children", taken_by_all, n=1 + count)
    figures.ratio("all of them / one", every, alone, aim="2 or less")
    go_on()
    for child in children:
        until(lambda child=child: len(agents.events(child, "turn.ended")) == 2, f"{child} did not end")  # type: ignore[misc]
    alike.seconds.append(time.time() - taken["at"])
    still.show(figures, aim="1 s per GiB used")
    ready.show(figures)
    runs.show(figures, aim="1 s")
    asks.show(figures)
    alike.show(figures)
    return every


def booted(figures: Figures, agents: Agents, count: int) -> Figure:
    """As many sessions in machines that were booted whole, at the same place of the same turn."""
    before = agents.waiting()
    ids = [agents.spawn() for _ in range(count)]
    until(lambda: agents.waiting() == before + count, "not all asked")
    return figures.mib(f"memory of {count} booted whole", memory(*(f"hv-{id}" for id in ids)), n=count)


@contextmanager
def asking(agent: str, *, templates: bool) -> Iterator[tuple[Agents, Callable[[], None]]]:
    """An installation with a model of its own, and what lets all answers there go on."""
    config = f'[engine]\nprovider = "qemu"\ndisk_reserve_mib = 1\n[qemu]\ntemplates = {str(templates).lower()}\n'
    serving = scripted_model([], scripts=SCRIPTS)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving) as model, yard(config) as home:
        try:
            yield Agents(home, model, agent), lambda: portal.call(model.open, "thought")
        finally:
            for session in json.loads(home.hv("list", "--all", "--json").stdout or b"[]"):
                home.hv("rm", "--force", session["id"])


def measure(count: int, agent: str) -> Figures:
    figures = Figures("forking a real agent in the middle of a turn")
    with asking(agent, templates=True) as (agents, go_on):
        every = forked(figures, agents, go_on, count)
    with asking(agent, templates=False) as (agents, _):
        whole = booted(figures, agents, 1 + count)
    figures.ratio("forked / booted whole", every, whole)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--agent", default="claude")
    options = parser.parse_args()
    figures = measure(options.children, options.agent)
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
