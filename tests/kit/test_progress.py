"""Progress of long steps: none for short ones, and never much."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.kit.progress import disk_usage, heartbeat, measured, size

pytestmark = pytest.mark.anyio


async def test_a_short_step_reports_nothing() -> None:
    said: list[str] = []
    async with heartbeat(said.append, "a step"), measured(said.append, "a step", lambda: "1 kB"):
        pass
    assert said == []


async def test_a_long_step_reports_amounts_that_change() -> None:
    said: list[str] = []
    amounts = iter(["1 kB", "1 kB", "2 kB"])
    async with measured(said.append, "copying", lambda: next(amounts, "2 kB"), first=0.01):
        await anyio.sleep(0.3)
    assert said == ["copying: 1 kB", "copying: 2 kB"]


async def test_a_silent_step_repeats_its_last_line_with_the_time() -> None:
    said: list[str] = []
    async with heartbeat(said.append, "a step", first=0.05) as report:
        await anyio.sleep(0.12)
        report("booting")
        await anyio.sleep(0.4)
    assert said[0] == "a step (0s)"
    assert "booting" in said and "booting (0s)" in said
    assert len(said) < 8, "the pauses grow"


async def test_measured_steps_and_a_heartbeat_do_not_report_the_same() -> None:
    said: list[str] = []
    counted = iter(range(100))
    async with (
        heartbeat(said.append, "a step", first=0.1) as report,
        measured(report, "copying", lambda: f"{next(counted)} kB", first=0.08),
    ):
        await anyio.sleep(1)
    assert [line for line in said if "s)" in line] == []


async def test_a_failure_of_the_step_comes_out_as_itself() -> None:
    with pytest.raises(ValueError, match="broken"):
        async with heartbeat(lambda _: None, "x") as report, measured(report, "x", lambda: ""):
            raise ValueError("broken")


async def test_an_amount_that_cannot_be_measured_is_not_reported() -> None:
    said: list[str] = []

    def amount() -> str:
        raise FileNotFoundError

    async with measured(said.append, "copying", amount, first=0.01):
        await anyio.sleep(0.05)
    assert said == []


def test_sizes_have_the_unit_that_fits(tmp_path: Path) -> None:
    assert [size(count) for count in (0, 999_999, 1_000_000, 2_560_000_000)] == ["0 kB", "1000 kB", "1 MB", "2.6 GB"]
    assert disk_usage(tmp_path / "absent") == "0 kB"
