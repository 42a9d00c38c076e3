"""The watchdog ends a turn that does not end by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hiveyard.engine.settings import EngineSettings
from hiveyard.engine.turns.disk_watch import DISK_INTERVAL, watch_disk
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.watchdog import Limit, Liveness, watch
from tests.support.clocks import ManualClock

SETTINGS = EngineSettings(silence=100.0, disk_reserve_mib=0)


@dataclass
class Knocker:
    busy: int = 0
    last_seen: float = 0.0


@pytest.mark.anyio
async def test_a_turn_ends_at_its_deadline_and_not_before(tmp_path: Path) -> None:
    clock, stop = ManualClock(1000.0), Stop()
    await watch(clock, SETTINGS, Limit(1050.0, 50.0), Liveness(clock, Knocker()), stop)
    assert stop.reason is not None
    assert stop.reason.code == "agent.timeout"
    assert "time limit of 50 seconds" in stop.reason.message
    assert clock.time == pytest.approx(1050.0)


@pytest.mark.anyio
async def test_silence_ends_a_turn(tmp_path: Path) -> None:
    clock, stop = ManualClock(1000.0), Stop()
    await watch(clock, SETTINGS, Limit(9999.0, 50.0), Liveness(clock, Knocker(last_seen=1030.0)), stop)
    assert stop.reason is not None
    assert stop.reason.code == "agent.silent"
    assert clock.time == pytest.approx(1130.0)


@pytest.mark.anyio
async def test_an_agent_that_waits_for_a_model_is_not_silent(tmp_path: Path) -> None:
    clock, stop = ManualClock(1000.0), Stop()
    await watch(clock, SETTINGS, Limit(5000.0, 50.0), Liveness(clock, Knocker(busy=1)), stop)
    assert stop.reason is not None
    assert stop.reason.code == "agent.timeout"
    assert "time limit of 50 seconds" in stop.reason.message


@pytest.mark.anyio
async def test_a_daemon_that_was_stopped_for_an_hour_does_not_blame_the_agent(tmp_path: Path) -> None:
    class Stopped(ManualClock):
        async def sleep(self, seconds: float) -> None:
            self.time += 3600.0 if self.time == 1000.0 else seconds

    clock, stop = Stopped(1000.0), Stop()
    await watch(clock, SETTINGS, Limit(9999.0, 50.0), Liveness(clock, Knocker()), stop)
    assert stop.reason is not None
    assert stop.reason.code == "agent.silent"
    assert clock.time == pytest.approx(4700.0)


@pytest.mark.anyio
async def test_a_turn_is_stopped_before_the_disk_is_full(tmp_path: Path) -> None:
    clock, stop = ManualClock(1000.0), Stop()
    await watch_disk(clock, replace(SETTINGS, disk_reserve_mib=1 << 40), tmp_path, stop)
    assert stop.reason is not None
    assert stop.reason.code == "engine.disk_reserve"
    assert str(tmp_path) in stop.reason.message


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk of 16 MiB")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.anyio
async def test_the_disk_is_checked_more_often_the_less_is_free(full: Path) -> None:
    """A guest fills a disk of 16 MiB by 1 MiB at each check."""
    slept: list[float] = []

    class Filling(ManualClock):
        async def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            (full / str(len(slept))).write_bytes(bytes(1 << 20))

    stop = Stop()
    await watch_disk(Filling(), replace(SETTINGS, disk_reserve_mib=4), full, stop)
    assert stop.reason is not None
    assert 8 <= len(slept) <= 13
    assert max(slept) < DISK_INTERVAL
