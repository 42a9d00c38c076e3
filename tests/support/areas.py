"""A plugin of pytest that records how long each test took, and a table of it by area: one row for each folder of tests.

`tests/__main__.py` runs pytest several times and adds the records up, so they go into the file `$HIVEYARD_TEST_RECORD`.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

VARIABLE = "HIVEYARD_TEST_RECORD"


class Recorder:
    """Writes one JSON line for each phase of each test: `test`, `seconds`, `outcome`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = {"test": report.nodeid, "seconds": report.duration, "outcome": report.outcome}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def register(config: pytest.Config) -> None:
    """Record the tests of this run, if the runner asked for it. Workers of xdist report to their controller."""
    # Removed from the environment: a pytest that a test runs has nothing to add.
    if path := os.environ.pop(VARIABLE, None):
        config.pluginmanager.register(Recorder(Path(path)))


@dataclass
class Area:
    tests: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    seconds: float = 0.0


def area_of(test: str) -> str:
    """Return the folder of a test below tests/, at most two levels; `.` for a file directly in tests/."""
    return "/".join(test.split("::")[0].split("/")[1:-1][:2]) or "."


def areas(lines: Iterable[str]) -> dict[str, Area]:
    """Return what a record says, by area. The seconds are those of all workers together."""
    found: dict[str, Area] = defaultdict(Area)
    for line in lines:
        one = json.loads(line)
        area = found[area_of(one["test"])]
        area.tests.add(one["test"])
        area.seconds += one["seconds"]
        if one["outcome"] != "passed":
            (area.failed if one["outcome"] == "failed" else area.skipped).add(one["test"])
    return dict(found)


def slowest(lines: Iterable[str], count: int) -> list[tuple[float, str]]:
    """Return the tests that took longest, with their seconds."""
    seconds: dict[str, float] = defaultdict(float)
    for line in lines:
        one = json.loads(line)
        seconds[one["test"]] += one["seconds"]
    return sorted(((taken, test) for test, taken in seconds.items()), reverse=True)[:count]
