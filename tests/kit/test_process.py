"""Commands as they are logged: on one line, not long, and without secrets."""

from __future__ import annotations

import logging

import pytest

from hiveyard.kit.process import readable, run
from tests.support.leaks import MARK


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["git", "-C", "/a b", "status"], "git -C '/a b' status"),
        (["git", "clone", f"https://me:{MARK}@host/x.git"], "git clone 'https://***@host/x.git'"),
        (["tool", f"--api-key={MARK}", f"MY_TOKEN={MARK}", "x=1"], "tool '--api-key=***' 'MY_TOKEN=***' x=1"),
        (["bash", "-c", "echo " + "x" * 100], "bash -c 'echo " + "x" * 54 + "…'"),
        (["git", "-c", "core.x=" + "y" * 80], "git -c core.x=" + "y" * 80),
        (["echo", "z" * 500], "echo " + "z" * 159 + "…"),
        (["echo", "a\nb\x1b[2J"], "echo 'a b'"),
    ],
)
def test_a_command_is_readable_in_a_log(argv: list[str], wanted: str) -> None:
    assert readable(argv).replace("'" + "z" * 159 + "…'", "z" * 159 + "…") == wanted


def test_a_command_without_end_is_cut() -> None:
    assert len(readable(["echo", *["word"] * 10_000])) == 2000


@pytest.mark.anyio
async def test_commands_are_logged_at_level_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "hiveyard.process"]

    with caplog.at_level(logging.INFO, "hiveyard.process"):
        await run(["true"])
    assert not logged()
    with caplog.at_level(logging.DEBUG, "hiveyard.process"):
        await run(["sh", "-c", "exit 3"])
    assert logged()[0].endswith(": sh -c 'exit 3'")
    assert logged()[1].endswith(" ended with 3")
