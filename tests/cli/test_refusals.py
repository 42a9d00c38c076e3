"""What a person may get wrong, or a stranger do on purpose: told in a line, and nobody is held up."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hiveyard.api.client import Client, DaemonSilent
from tests.cli.conftest import Hv


@pytest.mark.parametrize("option", ["--tape", "--record"])
def test_a_tape_that_is_a_pipe_is_refused_and_holds_nobody_up(option: str, hv: Hv, repo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = hv("run", str(repo), "-m", "x", "--command", "true", option, str(tmp_path / "pipe"), timeout=60)
    assert done.returncode == 2
    assert "no regular file" in done.stderr
    assert hv.json("ps", "-a") == []


def test_a_daemon_that_says_nothing_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        with pytest.raises(DaemonSilent, match="has said nothing for") as told:
            Client(tmp_path / "s").alive(0.1)
    assert told.value.hint.startswith(f"kill {os.getpid()};")
    assert not Client(tmp_path / "s").alive()
