"""The editor for Claude Code: it inserts our prompts, and starts the user's own editor for the user's key press."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from hiveyard.agents.claude.terminal import _EDITOR


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    (place / "edit").write_text(_EDITOR.format(runtime=shlex.quote(str(place))))
    (tmp_path / "own").write_text('#!/bin/sh\nprintf own >"$1"\n')
    (tmp_path / "own").chmod(0o755)
    (tmp_path / "claude-prompt-1").write_text("a draft")
    return place


def edited(place: Path, file: str = "claude-prompt-1") -> str:
    """Return the content of the program's file after its editor has exited."""
    asked = place.parent / file
    env = {**os.environ, "HIVEYARD_EDITOR": str(place.parent / "own")}
    subprocess.run(["sh", str(place / "edit"), str(asked)], check=True, env=env, cwd=place.parent, timeout=30)
    return asked.read_text()


def test_a_waiting_prompt_is_inserted_and_the_draft_is_saved(place: Path) -> None:
    (place / "prompt").write_text("do it")
    (place / "press.0").touch()
    assert edited(place) == "do it"
    assert ((place / "draft").read_text(), (place / "taken").read_text()) == ("a draft", "do it")


def test_a_second_key_press_of_ours_opens_no_editor(place: Path) -> None:
    (place / "prompt").write_text("do it")
    for number in range(3):
        (place / f"press.{number}").touch()
    assert [edited(place) for _ in range(3)] == ["do it"] * 3
    assert edited(place) == "own", "the next press is a person's"


def test_the_user_and_other_files_get_the_users_own_editor(place: Path) -> None:
    (place / "press.0").touch()
    (place.parent / "notes").write_text("")
    assert edited(place, "notes") == "own"
    (place / "press.0").unlink()
    assert edited(place) == "own"
