"""Who has the server quiet may take that back while a slow guest is still at it."""

from __future__ import annotations

from pathlib import Path

from tests.machines.fuse_server.kernel import FENCE, GO, LOOKUP, PAUSE, ROOT, serving

NAMED = b"file\0"


def test_a_wish_that_was_taken_back_before_the_guest_agreed_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serving(tmp_path, tmp_path / "control") as guest:
        guest.wish(b"quiet\n")
        guest.wish(b"go\n")
        assert [guest.answer().code for _ in range(2)] == [PAUSE, GO]
        guest.echo(PAUSE)
        assert guest.call(LOOKUP, ROOT, NAMED).code == 0, "no fence came, behind which the guest would wait"


def test_a_wish_that_was_taken_back_before_the_fence_returned_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serving(tmp_path, tmp_path / "control") as guest:
        guest.wish(b"quiet\n")
        assert guest.answer().code == PAUSE
        guest.echo(PAUSE)
        assert guest.answer().code == FENCE
        guest.wish(b"go\n")
        assert guest.answer().code == GO
        guest.echo(FENCE)
        assert guest.call(LOOKUP, ROOT, NAMED).code == 0


def test_of_two_wishes_the_second_counts(tmp_path: Path) -> None:
    """The guest was let go between them, so what it asked then is answered before it is quiet."""
    (tmp_path / "file").touch()
    with serving(tmp_path, tmp_path / "control") as guest:
        for line in (b"quiet\n", b"go\n", b"quiet\n"):
            guest.wish(line)
        assert [guest.answer().code for _ in range(3)] == [PAUSE, GO, PAUSE]
        guest.echo(PAUSE)
        assert guest.call(LOOKUP, ROOT, NAMED).code == 0
        guest.echo(PAUSE)
        assert guest.answer().code == FENCE
        guest.echo(FENCE)
        assert guest.quiet_now()


def test_a_guest_that_agrees_to_what_nobody_asked_is_not_heard(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serving(tmp_path, tmp_path / "control") as guest:
        for code in (FENCE, PAUSE, FENCE):
            guest.echo(code)
        assert guest.call(LOOKUP, ROOT, NAMED).code == 0
