"""Discover the controllers of a host, and leave nothing behind where none can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.machines.bubblewrap.cgroups import Cgroups


@pytest.mark.parametrize("controllers", [["memory", "cpu", "pids"], []])
def test_directories_that_are_no_cgroups_limit_nothing_and_stay_empty(tmp_path: Path, controllers: list[str]) -> None:
    for controller in controllers:
        (tmp_path / controller).mkdir()
    cgroups = Cgroups(tmp_path)
    cgroups.discover()
    assert cgroups.controllers == ()
    assert cgroups.groups("hiveyard-of-this-test") == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(controllers)
