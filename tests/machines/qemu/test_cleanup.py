"""What is removed from the cache, and what is not."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from hiveyard.machines.qemu.cleanup import remove_unused, stand_on, sweep, use


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A template that nobody used for two days."""
    root = tmp_path / "template"
    root.mkdir()
    (root / "memory").write_bytes(b"memory")
    _age(root)
    return root


def _age(root: Path) -> None:
    before = time.time() - 2 * 24 * 3600
    for path in (*root.iterdir(), root):
        os.utime(path, (before, before))


def test_what_nobody_uses_is_removed(old: Path) -> None:
    sweep([old])
    assert not old.exists()


def test_what_was_used_today_stays(old: Path) -> None:
    use(old)
    sweep([old])
    assert old.exists()


def test_what_a_snapshot_stands_on_stays_as_long_as_the_snapshot_does(old: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    stand_on({old}, snapshot)
    _age(old)
    sweep([old])
    assert old.exists()
    snapshot.rmdir()
    _age(old)
    sweep([old])
    assert not old.exists()


def test_what_is_let_go_of_today_stays_for_a_snapshot_only(old: Path, tmp_path: Path) -> None:
    use(old)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    stand_on({old}, snapshot)
    remove_unused([old])
    assert old.exists()
    snapshot.rmdir()
    remove_unused([old])
    assert not old.exists()


def test_what_a_running_qemu_holds_stays(old: Path) -> None:
    # All that a QEMU is known by, with a template's directory open.
    script = 'exec 9<"$0"; echo; read -r'
    argv = ["bash", "-c", script, str(old), "-nodefaults", "-name", "hiveyard-test:held"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        sweep([old])
        assert old.exists()
    sweep([old])
    assert not old.exists()
