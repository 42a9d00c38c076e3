"""Which templates and disks are removed from the cache."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from hiveyard.machines.qemu.cleanup import mark_needed, mark_used, remove_unused, sweep


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A template that was not used for two days."""
    root = tmp_path / "template"
    root.mkdir()
    (root / "memory").write_bytes(b"memory")
    _age(root)
    return root


def _age(root: Path) -> None:
    before = time.time() - 2 * 24 * 3600
    for path in (*root.iterdir(), root):
        os.utime(path, (before, before))


def test_an_idle_template_is_removed(old: Path) -> None:
    sweep([old])
    assert not old.exists()


def test_a_template_that_was_used_today_stays(old: Path) -> None:
    mark_used(old)
    sweep([old])
    assert old.exists()


def test_a_template_that_a_snapshot_needs_stays_as_long_as_the_snapshot(old: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    mark_needed({old}, snapshot)
    _age(old)
    sweep([old])
    assert old.exists()
    snapshot.rmdir()
    _age(old)
    sweep([old])
    assert not old.exists()


def test_a_template_that_is_released_today_stays_for_a_snapshot_only(old: Path, tmp_path: Path) -> None:
    mark_used(old)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    mark_needed({old}, snapshot)
    remove_unused([old])
    assert old.exists()
    snapshot.rmdir()
    remove_unused([old])
    assert not old.exists()


def test_a_template_that_a_running_qemu_has_open_stays(old: Path) -> None:
    # A process that looks like a QEMU of Hiveyard, with a template's directory open.
    script = 'exec 9<"$0"; echo; read -r'
    argv = ["bash", "-c", script, str(old), "-nodefaults", "-name", "hiveyard-test:held"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        sweep([old])
        assert old.exists()
    sweep([old])
    assert not old.exists()
