"""`hv attach` to a live session: its transcript as it grows, and a line to type at."""

from __future__ import annotations

import sys
import threading
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import ask, live
from hiveyard.core.errors import BadInput, HiveyardError, SessionNotRunning

BACKLOG = 200
"""Events of the past that are shown first."""
_HELP = """\
  a line        the next prompt; while a turn runs, it waits
  /now TEXT     add TEXT to the turn that runs
  /allow, /deny [WHY]   answer the agent's question
  /answer NAME  answer it with another of its answers
  /model NAME   choose the model of later turns
  Ctrl-C        end the turn that runs
  Ctrl-B D      leave; the agent goes on"""


class _Detach(Exception):
    """The user leaves."""


def attach_live(session: dict[str, Any], *, read_only: bool) -> int:
    """Show a live session's transcript and send what is typed, until the user leaves or the session ends."""
    if session["status"] != "running":
        raise SessionNotRunning(f"{session['name']} is {session['status']}", hint=f"hv resume {session['name']}")
    if not read_only and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput(
            "stdin and stdout must be a terminal",
            hint=f"hv logs -f {session['name']}; hv send {session['name']} TEXT",
        )
    after = max(0, session["last_seq"] - BACKLOG)
    if read_only:
        _show(session, after)
        return 0
    return _Prompt(session).run(after)


def _show(session: dict[str, Any], after: int) -> None:
    for event in live(session["id"], after=after):
        for line in transcript.lines(event):
            click.echo(line)


class _Prompt:
    """The line at the bottom of the terminal, below the transcript."""

    def __init__(self, session: dict[str, Any]) -> None:
        self._id = session["id"]
        self._path = f"/v1/sessions/{quoted(session['id'])}"
        self._session = session
        self._over = False

    def run(self, after: int) -> int:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.patch_stdout import patch_stdout

        reader: PromptSession[str] = PromptSession(key_bindings=_keys())
        click.echo("Ctrl-B D leaves, /help lists what you can type", err=True)
        with patch_stdout(raw=True):
            threading.Thread(target=self._follow, args=(reader, after), daemon=True).start()
            while not self._over:
                try:
                    self._typed(reader.prompt("❯ ").strip())
                except KeyboardInterrupt:
                    self._do(lambda: ask("POST", f"{self._path}/interrupt"))
                except (EOFError, _Detach):
                    break
        return 0

    def _follow(self, reader: Any, after: int) -> None:
        try:
            _show(self._session, after)
        except HiveyardError as error:
            click.echo(f"! {error.message}")
        self._over = True
        if reader.app.is_running:
            reader.app.exit(exception=_Detach(), style="class:exiting")

    def _typed(self, line: str) -> None:
        verb, _, rest = line.partition(" ")
        rest = rest.strip()
        if not line:
            return
        if verb == "/help":
            click.echo(_HELP)
        elif verb == "/now":
            self._do(lambda: connect().call("POST", f"{self._path}/prompts", {"text": rest, "now": True}))
        elif verb in ("/allow", "/deny"):
            self._do(lambda: self._answer(verb[1:], rest))
        elif verb == "/answer":
            self._do(lambda: self._answer(rest, ""))
        elif verb == "/model":
            self._do(lambda: connect().call("POST", f"{self._path}/model", {"model": rest}))
        else:
            self._do(lambda: connect().call("POST", f"{self._path}/prompts", {"text": line}))

    def _answer(self, answer: str, message: str) -> None:
        """Answer the oldest question of this session."""
        mine = [one for one in connect().call("GET", "/v1/asks", all=False) if one["session"] == self._id]
        if not mine:
            raise BadInput("the agent asks nothing at the moment")
        connect().call("POST", f"/v1/asks/{mine[0]['id']}/answer", {"answer": answer, "message": message})

    def _do(self, act: Any) -> None:
        """Do something; a failure is one line, and the user goes on."""
        try:
            act()
        except HiveyardError as error:
            click.echo(f"! {error.message}" + (f" ({error.hint})" if error.hint else ""))


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("c-b", "d")
    @keys.add("c-b", "D")
    def leave(event: Any) -> None:
        event.app.exit(exception=_Detach(), style="class:exiting")

    return keys
