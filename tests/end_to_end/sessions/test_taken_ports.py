"""Requests for host ports that are taken."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end.sessions.conftest import Stage
from tests.engine.access.test_host_ports import free, listening


class Taken(NamedTuple):
    """A port of this host and its owner, as errors name it."""

    port: int
    owner: str


@pytest.fixture
def first(stage: Stage, repo: Path) -> str:
    """Spawn a session that is idle."""
    id = stage.spawn(repo, "--name", "first", "-m", "remember apples")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    return id


@pytest.fixture
def taken(stage: Stage, first: str) -> Iterator[list[Taken]]:
    """Yield the session's ssh port, a port that it forwards, and one of another program."""
    session = f"session first ({first})"
    forwarded = stage.json("port", first, f"3000:{free()}")["host"]
    comm = Path("/proc/self/comm").read_text().strip()
    with listening("127.0.0.1") as foreign:
        yield [
            Taken(stage.session(first)["port"], session),
            Taken(forwarded, session),
            Taken(foreign, f"another program, {comm} (pid {os.getpid()})"),
        ]


def refused(done: subprocess.CompletedProcess[str], taken: Taken) -> None:
    """Check that one line names the owner and another one gives a hint."""
    said = f"error: port {taken.port} is taken by {taken.owner}\n  try: name another port, or none to get a free port\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", said)


def test_no_session_is_created_for_a_taken_port(stage: Stage, repo: Path, taken: list[Taken]) -> None:
    before = stage.sessions()
    for one in taken:
        refused(stage("spawn", str(repo), "--port", str(one.port), "--name", "second"), one)
    assert stage.sessions() == before
    stage.spawn(repo, "--name", "second")


def test_a_forwarded_port_does_not_move_to_a_taken_one(stage: Stage, repo: Path, taken: list[Taken]) -> None:
    second = stage.spawn(repo, "--name", "second", "-m", "remember pears")
    stage.until(second, lambda body: body["type"] == "turn.ended")
    for one in taken:
        refused(stage("port", second, f"3000:{one.port}"), one)
    own = stage.json("port", second, f"3000:{free()}")["host"]
    before = stage.sessions()
    for one in taken:
        refused(stage("port", second, f"3000:{one.port}"), one)
    assert stage.sessions() == before
    assert {"guest": 3000, "host": own} in stage.session(second)["ports"]
