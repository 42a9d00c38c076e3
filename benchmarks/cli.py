"""Measure a call of `hv` as a whole process, from fork to exit.

    python -m benchmarks.cli [--json] [--n N] [--tasks N] [--sessions N]

The floor is the same interpreter doing nothing, in turn with the others, so that noise hits all. `hv ps` and
`hv list` ask a daemon that is up and has many tasks and sessions in its journal, and the sessions on disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

import anyio

from benchmarks._figures import Figures
from benchmarks._past import past
from benchmarks._timed import Timed, tell
from benchmarks._yard import Yard, yard

CONFIG = '[engine]\nprovider = "bubblewrap"\nimage = "host"\n'


AIMS = {
    "hv --help": "100 ms",
    "hv ps": "150 ms",
    "hv ps --all --limit 20": "150 ms",
    "hv list, 1000 sessions": "300 ms",
    "hv list --json, 1000 sessions": "300 ms",
}


def measure(home: Yard, *, tasks: int, sessions: int, n: int) -> Figures:
    floor = Timed("python -c pass (floor)")
    calls = {
        floor: [sys.executable, "-c", "pass"],
        Timed("python -c 'import click'"): [sys.executable, "-c", "import click"],
        Timed("hv --help"): home.argv("--help"),
        Timed("hv ps"): home.argv("ps"),
        Timed("hv ps --all --limit 20"): home.argv("ps", "--all", "--limit", "20"),
        Timed(f"hv ps --all, {tasks} tasks"): home.argv("ps", "--all"),
        Timed(f"hv list, {sessions} sessions"): home.argv("list"),
        Timed(f"hv list --json, {sessions} sessions"): home.argv("list", "--json"),
    }
    for number in range(n + 3):
        for timed, argv in calls.items():
            call(home, timed, argv)
            if number < 3:  # the first ones find caches cold
                timed.seconds.clear()
    figures = Figures("cli")
    shown = {timed.name: timed.show(figures, aim=AIMS.get(timed.name, "")) for timed in calls}
    for name in ("hv --help", "hv ps"):
        figures.ratio(f"{name} / floor", shown[name], shown[floor.name])
    return figures


def call(home: Yard, timed: Timed, argv: Sequence[str]) -> None:
    begun = time.perf_counter()
    done = subprocess.run(argv, env=home.env, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        tell(f"{timed.name}: exit code {done.returncode}: {done.stderr.decode()[-300:]}")
        timed.failures += 1
        return
    timed.seconds.append(time.perf_counter() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure calls of hv.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--n", type=int, default=50, help="how often each is called")
    parser.add_argument("--tasks", type=int, default=1000, help="tasks in the journal")
    parser.add_argument("--sessions", type=int, default=1000, help="sessions in the journal and on disk")
    options = parser.parse_args()
    with yard(CONFIG) as home:
        tell(f"writing {options.tasks} tasks and {options.sessions} sessions into a scratch installation")
        anyio.run(lambda: past(home.home, tasks=options.tasks, sessions=options.sessions))
        figures = measure(home, tasks=options.tasks, sessions=options.sessions, n=options.n)
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
