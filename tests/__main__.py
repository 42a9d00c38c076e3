"""Run groups of tests and print what each area took: `python -m tests unit real`, `python -m tests long vms`.

A group that fails is run once more, with the failed tests alone: a machine that is short of processors can make a test
late. The table at the end lists the tests that needed it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.areas import VARIABLE, areas, slowest
from tests.support.changed import tests_of_changes

ROOT = Path(__file__).resolve().parents[1]
SLOWEST = 15
# Most unit tests wait for other programs most of the time, so there are two workers for each processor.
WORKERS = 2 * (os.cpu_count() or 1)
SPREAD = ("--numprocesses", str(WORKERS), "--dist", "worksteal")
# Rows of tests (tests/conftest.py), three side by side: most wait, and a VM takes a processor.
ROWS = ("--numprocesses", "3", "--dist", "loadscope")
LONG = {
    "vms": "eight real agents at once in VMs",
    "agents": "each real agent program on each provider",
    "storms": "kills, floods, crowds and fuzzing",
    "postgres": "the engine with its journal in PostgreSQL",
    "processes": "each process manager on each provider, with PM2 in a VM",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tests that run in one call of pytest."""

    name: str
    options: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The result of a group: its exit code, its record and the tests that only passed in their second run."""

    group: Group
    status: int
    seconds: float
    lines: list[str]
    retried: list[str]


def unit(*paths: str) -> Group:
    return Group(name="unit", options=("-m", "not real and not cloud and not long", *SPREAD, *paths))


def real() -> Group:
    return Group(name="real", options=("-m", "real and not cloud and not long", *ROWS))


def long(part: str) -> Group:
    """A part of `make long`. Eight agents in VMs have the machine to themselves."""
    if part == "postgres":
        options = ("-m", "not real and not cloud and not long", *SPREAD, "tests/engine")
        return Group(name="long postgres", options=options, env={"HIVEYARD_TEST_STORE": "postgresql"})
    spread = () if part == "vms" else ROWS
    return Group(name=f"long {part}", options=("-m", "long and not cloud", "--part", part, *spread))


def run(group: Group, record: Path) -> Ran:
    """Run a group, and what failed in it once more."""
    begun = time.monotonic()
    status = _pytest(group, record)
    lines = record.read_text().splitlines()
    failed = {test for area in areas(lines).values() for test in area.failed}
    retried: list[str] = []
    if status == pytest_failed and failed:
        print(f"\n=== {group.name}: {len(failed)} failed; once more, alone", flush=True)
        status = _pytest(group, record, "--last-failed", "--last-failed-no-failures", "none")
        retried = sorted(failed)
    return Ran(group=group, status=status, seconds=time.monotonic() - begun, lines=lines, retried=retried)


pytest_failed, pytest_found_none = 1, 5


def _pytest(group: Group, record: Path, *more: str) -> int:
    record.write_text("")
    command = [sys.executable, "-m", "pytest", "-q", *group.options, *more]
    env = {**os.environ, **group.env, VARIABLE: str(record)}
    status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    return 0 if status == pytest_found_none and group.name == "unit" else status


def summary(ran: Ran) -> None:
    print(f"\n=== {ran.group.name}: {ran.seconds:.0f} s, exit code {ran.status}")
    print(f"  {'area':<28}{'tests':>7}{'skipped':>9}{'failed':>8}{'seconds':>9}   (of all workers together)")
    for name, area in sorted(areas(ran.lines).items(), key=lambda item: -item[1].seconds):
        print(f"  {name:<28}{len(area.tests):>7}{len(area.skipped):>9}{len(area.failed):>8}{area.seconds:>9.0f}")
    print(f"  the {SLOWEST} slowest:")
    for seconds, test in slowest(ran.lines, SLOWEST):
        print(f"  {seconds:>7.1f}  {test}")
    for test in ran.retried:
        print(f"  {'still failed' if ran.status else 'NEEDED A SECOND RUN'}: {test}")


def wanted(words: list[str]) -> list[Group]:
    """Return the groups that the words on the command line name. Exits with 2 for others."""
    if words[:1] == ["long"] and set(words[1:]) <= set(LONG):
        return [long(part) for part in words[1:] or LONG]
    if words == ["quick"]:
        changed = tests_of_changes(ROOT)
        return [unit(*changed)] if changed else []
    if words and set(words) <= {"unit", "real"}:
        return [{"unit": unit, "real": real}[word]() for word in words]
    parts = "".join(f"\n  {part:<12}{what}" for part, what in LONG.items())
    print(f"usage: python -m tests unit|real|quick...\n       python -m tests long [PART...]\n{parts}", file=sys.stderr)
    raise SystemExit(2)


def main(words: list[str]) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        ran = [run(group, Path(scratch) / "record") for group in wanted(words)]
    for one in ran:
        summary(one)
    failed = [one.group.name for one in ran if one.status]
    total = time.monotonic() - begun
    outcome = f"FAILED ({', '.join(failed)})" if failed else "passed"
    print(f"\n=== {' '.join(words)}: {outcome} in {total:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
