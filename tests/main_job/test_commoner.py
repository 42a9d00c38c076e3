"""The main job for a person without rights: their own daemon, their own machines, their own images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.support.commoner import Commoner
from tests.support.leaks import searched_directory
from tests.support.vm import vm_image

REPO = """
git config --global user.name Ada; git config --global user.email ada@example.com
git init --quiet repo; echo one > repo/a; git -C repo add a; git -C repo commit --quiet -m First
"""
LIVE_FORK = Path(__file__).with_name("live_fork.py")
TINY = 'node = ""\npackages = ["git", "socat"]\n[programs]\ngit = "git --version"\n'


@pytest.fixture
def commoner() -> Iterator[Commoner]:
    if os.geteuid() != 0:
        pytest.skip("who runs this is a person without rights already: the other tests tell")
    with searched_directory() as scratch:
        yield Commoner(Path(scratch, "home"))


def test_a_person_without_rights_gets_work_done_in_a_machine(commoner: Commoner) -> None:
    work = "id -u; echo two > b; touch /etc/x /usr/x || echo refused"
    done = commoner.run(
        f"{REPO} hv run repo -m work --command '{work}' --provider bubblewrap --image host --json; hv apply work >&2;"
        "git -C repo show hv/work:b >&2"
    )
    report = json.loads(done.stdout)
    assert "status" in report, (report, done.stderr)
    assert (report["status"], report["commits"], report["tier"]) == ("completed", 1, "namespace"), done.stderr
    assert "refused" in done.stderr
    assert done.stderr.splitlines()[-2] == "two", done.stderr


@pytest.mark.real
def test_a_person_without_rights_builds_an_image_and_uses_it(commoner: Commoner) -> None:
    (commoner.home / "tiny.toml").write_text(TINY)
    done = commoner.run(
        f"{REPO} hv image build tiny.toml >&2 && hv run repo -m work --command 'git --version > b'"
        " --provider bubblewrap --image tiny.toml --json",
        timeout=600,
    )
    report = json.loads(done.stdout or "{}")
    assert report.get("status") == "completed", done.stderr
    assert report["commits"] == 1


@pytest.mark.real
def test_a_person_without_rights_forks_a_vm_while_it_runs(commoner: Commoner) -> None:
    image = anyio.run(vm_image)
    theirs = commoner.home / image.id
    theirs.mkdir(mode=0o755)
    shutil.copy(image.rootfs, theirs)
    shutil.copy(LIVE_FORK, commoner.home)
    done = commoner.run(f"py {LIVE_FORK.name} {theirs / image.rootfs.name}", timeout=900)
    assert done.stdout.splitlines()[-3:] == ["counted on", "kept in memory", "child"], done.stdout + done.stderr
