"""The main job for an unprivileged user with their own daemon, machines and images."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
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
        person = Commoner(Path(scratch, "home"))
        try:
            yield person
        finally:
            person.end()


def test_an_unprivileged_user_runs_a_task_in_a_machine(commoner: Commoner) -> None:
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
def test_an_unprivileged_user_builds_and_uses_an_image(commoner: Commoner) -> None:
    (commoner.home / "tiny.toml").write_text(TINY)
    done = commoner.run(
        f"{REPO} hv image build tiny.toml >&2 && hv run repo -m work --command 'git --version > b'"
        " --provider bubblewrap --image tiny.toml --json",
        timeout=600,
    )
    report = json.loads(done.stdout or "{}")
    assert report.get("status") == "completed", done.stderr
    assert report["commits"] == 1


# A build step that would run for ever without output, until it is killed.
ENDLESS = 'node = ""\npackages = []\nrun = ["touch /begun; sleep 3617"]\n'
KILLED = """
mkdir tmp; export TMPDIR=$HOME/tmp
begun() { ls -d tmp/*/mmdebstrap.*/begun; } >/dev/null 2>&1
"$python" -m hiveyard.cli.main image build endless.toml >&2 & asker=$!
until begun || ! kill -0 $asker; do sleep 0.1; done
begun || exit 3
kill -STOP $asker  # otherwise it would start the next daemon
kill -9 $(hv version --json | py -c 'import json, sys; print(json.load(sys.stdin)["daemon"]["pid"])')
kill -9 $asker; wait
"""


@pytest.mark.long("storms")
@pytest.mark.real
def test_files_of_an_unprivileged_users_killed_build_are_removed_by_the_next(commoner: Commoner) -> None:
    (commoner.home / "endless.toml").write_text(ENDLESS)
    (commoner.home / "broken.toml").write_text('node = ""\npackages = ["no-such-package-at-all"]\n')
    killed = commoner.run(KILLED, timeout=600)
    assert killed.returncode == 0, f"the build ended before it could be killed: {killed.stderr}"
    temporary = commoner.home / "tmp"
    assert [path.name[:15] for path in temporary.iterdir()] == ["hiveyard-build-"], killed.stderr
    end = time.monotonic() + 300
    while left := _of_builds(temporary):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    # With another temporary directory: the killed build recorded the one that it used.
    said = commoner.run("mkdir other; export TMPDIR=$HOME/other; hv image build broken.toml >&2", timeout=600).stderr
    assert "no-such-package" in said
    assert list(temporary.iterdir()) == [], said
    assert list((commoner.home / "other").iterdir()) == [], said


def _of_builds(temporary: Path) -> list[str]:
    """Return the command lines of all users' processes that work in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"TMPDIR={temporary}/".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.real
def test_an_unprivileged_user_forks_a_running_vm(commoner: Commoner) -> None:
    image = anyio.run(vm_image)
    theirs = commoner.home / image.id
    theirs.mkdir(mode=0o755)
    shutil.copy(image.rootfs, theirs)
    shutil.copy(LIVE_FORK, commoner.home)
    done = commoner.run(f"py {LIVE_FORK.name} {theirs / image.rootfs.name}", timeout=900)
    assert done.stdout.splitlines()[-3:] == ["counted on", "kept in memory", "child"], done.stdout + done.stderr
