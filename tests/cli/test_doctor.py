"""`hv doctor` on hosts where something is missing: each failure is found by trying, and comes with its fix."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Hv

BUBBLEWRAP_NEEDS = ("nsenter", "setpriv", "tar", "unshare", "sh")


@pytest.fixture(name="hv")
def fresh_hv(own_hv: Hv) -> Hv:
    """Each test changes the environment or the settings."""
    return own_hv


def checks(hv: Hv) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in hv.json("doctor")}


@pytest.fixture
def bin() -> Iterator[Path]:
    """Yield a directory for programs, which the users of machines can enter too."""
    with tempfile.TemporaryDirectory(prefix="hv-bin-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def finds_only(hv: Hv, bin: Path, *programs: str) -> None:
    """Let the daemon find only these programs and those that a test puts into `bin`."""
    for program in programs:
        found = shutil.which(program)
        assert found, f"the test needs {program}"
        (bin / program).symlink_to(found)
    hv.env["PATH"] = str(bin)


def script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_a_check_that_passes_has_no_fix(hv: Hv) -> None:
    found = checks(hv)
    version = subprocess.run(["git", "--version"], capture_output=True, text=True).stdout.strip()
    assert (found["git"]["ok"], found["git"]["detail"]) == (True, version)
    assert all(not check["fix"] for check in found.values() if check["ok"])
    assert all(check["fix"] for check in found.values() if not check["ok"])


def test_each_missing_program_has_a_package_to_install(hv: Hv, bin: Path) -> None:
    finds_only(hv, bin)
    done = hv("doctor")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    found = checks(hv)
    for name, package in (
        ("git", "git"),
        ("qemu", "qemu"),
        ("bubblewrap", "bubblewrap"),
        ("image build", "mmdebstrap"),
    ):
        assert not found[name]["ok"], name
        assert package in found[name]["fix"], name


def test_a_provider_that_is_missing_is_not_needed_when_another_works(hv: Hv, bin: Path) -> None:
    finds_only(hv, bin, "git", "bwrap", *BUBBLEWRAP_NEEDS)
    hv.env["DOCKER_HOST"] = f"unix://{hv.home}/no-engine.sock"
    found = checks(hv)
    assert found["bubblewrap"]["ok"], found["bubblewrap"]
    for name in ("qemu", "docker"):
        assert (found[name]["ok"], found[name]["needed"]) == (False, False), name
        assert "apt-get install" in found[name]["fix"] or "DOCKER_HOST" in found[name]["fix"], name
    assert hv("doctor").returncode == 0


def test_a_bubblewrap_that_the_kernel_refuses_is_reported_with_its_message(hv: Hv, bin: Path) -> None:
    finds_only(hv, bin, "git", *BUBBLEWRAP_NEEDS)
    words = "bwrap: No permissions to create a new namespace, likely because the kernel does not allow them"
    script(
        bin / "bwrap",
        'case "$1" in --version) echo bubblewrap 0.8.0; exit 0;; esac',
        f"echo '{words}' >&2",
        "exit 1",
    )
    found = checks(hv)["bubblewrap"]
    assert not found["ok"]
    assert "No permissions to create a new namespace" in found["detail"]
    assert found["fix"]


def test_a_git_that_does_not_work_is_a_failure(hv: Hv, bin: Path) -> None:
    finds_only(hv, bin)
    script(bin / "git", "echo 'libcurl is missing' >&2", "exit 127")
    found = checks(hv)["git"]
    assert (found["ok"], found["needed"]) == (False, True)
    assert "libcurl is missing" in found["detail"]
    assert hv("doctor").returncode == 1


def test_a_user_without_a_name_in_git_learns_who_the_author_is(hv: Hv, tmp_path: Path) -> None:
    hv.env |= {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "GIT_CONFIG_NOSYSTEM": "1"}
    missing = checks(hv)["identity"]
    assert (missing["ok"], missing["needed"]) == (False, False)
    assert "Hiveyard" in missing["detail"]
    assert "user.name" in missing["fix"]
    (tmp_path / "gitconfig").write_text("[user]\nname = Ada\nemail = ada@localhost\n")
    assert checks(hv)["identity"]["detail"] == "Ada <ada@localhost>"


def test_a_cache_that_cannot_be_written_is_reported(hv: Hv, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    hv.env["HIVEYARD_CACHE"] = str(tmp_path / "cache")
    found = checks(hv)["cache"]
    assert (found["ok"], found["needed"]) == (False, False)  # no image is needed: the settings say `host`
    assert str(tmp_path / "cache") in found["detail"]
    assert "HIVEYARD_CACHE" in found["fix"]


def test_a_disk_with_less_space_than_the_reserve_is_reported(hv: Hv) -> None:
    config = (hv.home / "config.toml").read_text()
    (hv.home / "config.toml").write_text(config.replace("disk_reserve_mib = 1", f"disk_reserve_mib = {1 << 40}"))
    found = checks(hv)["sessions"]
    assert (found["ok"], found["needed"]) == (False, True)
    assert "GiB are needed" in found["detail"]
    assert hv("doctor").returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk that is full")
def test_a_full_disk_is_reported_wherever_it_is_met(hv: Hv, repo: Path) -> None:
    disk = hv.home / "data"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        hv.json("ps")
        (repo / "large").write_bytes(os.urandom(4 << 20))
        subprocess.run(["git", "-C", repo, "add", "."], check=True)
        git = ["git", "-C", str(repo), "-c", "user.name=T", "-c", "user.email=t@localhost"]
        subprocess.run([*git, "commit", "-q", "-m", "large"], check=True)
        failed = hv("run", str(repo), "-m", "x", "--command", "true")
        assert failed.returncode == 125
        assert "no space to copy" in failed.stdout
        assert hv("rm", hv.json("ps", "-a")[0]["id"]).returncode == 0
        (disk / "fill").write_bytes(b"")
        with (disk / "fill").open("ab", buffering=0) as fill, pytest.raises(OSError, match="No space left"):
            while True:
                fill.write(bytes(4096))
        refused = hv("run", str(repo), "-m", "x", "--command", "true", "--json")
        assert refused.returncode == 125
        assert "no space" in refused.stderr.lower() or "full" in refused.stderr, refused.stderr
        assert not checks(hv)["sessions"]["ok"]
        (disk / "fill").unlink()
        assert hv.json("ps", "-a") == []
        assert hv("stop-daemon").returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
