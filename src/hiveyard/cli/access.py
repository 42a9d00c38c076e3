"""`hv exec`, `hv cp`, `hv port`, `hv ssh-config`: ways from this host into a session."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from hiveyard.api.client import quoted
from hiveyard.api.duplex import Duplex
from hiveyard.cli.attach import own_terminal, sit_down
from hiveyard.cli.connect import connect
from hiveyard.cli.copy import from_guest, to_guest
from hiveyard.cli.execute import execute
from hiveyard.cli.names import SESSION
from hiveyard.cli.options import JSON
from hiveyard.core.errors import BadInput, DaemonUnreachable
from hiveyard.kit.text import one_line
from hiveyard.paths import default_paths

_LONGEST_ARGV = 4 << 20  # what the daemon takes


@click.command(
    "exec",
    short_help="Run a command in a session.",
    # What comes after the session is the command's, -h and all.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("-T", "--no-terminal", is_flag=True, help="Give it no terminal, also when there is one here.")
@SESSION
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND...")
def exec_(session: str, command: tuple[str, ...], no_terminal: bool) -> int:
    """Run COMMAND in the session's repository, as the agent's user. At a terminal it has one; else its outputs come
    apart. The exit code is the command's."""
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise BadInput("there is no command after --", hint="hv exec ID -- COMMAND")
    client = connect()
    if not no_terminal and sys.stdin.isatty() and sys.stdout.isatty():
        asked = {"argv": list(command), **own_terminal()}
        return sit_down(client.call("POST", f"/v1/sessions/{quoted(session)}/terminal", asked)["argv"])
    with _again("exec", "-T", session, "--", *command), _opened(session, command) as duplex:
        return execute(duplex)


@contextmanager
def _again(*words: str) -> Iterator[None]:
    """Give the error of a daemon that has ended the command line that tries again: hv starts the next daemon."""
    try:
        yield
    except DaemonUnreachable as error:
        raise DaemonUnreachable(error.message, hint=one_line(f"hv {shlex.join(words)}", 400)) from error


def _opened(session: str, argv: Sequence[str]) -> Duplex:
    try:
        command = json.dumps(argv, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the command is not UTF-8: {os.fsencode(error.object[:200])!r}") from None
    if len(command) > _LONGEST_ARGV:
        raise BadInput(
            f"the command is {len(command)} bytes long, the most is {_LONGEST_ARGV}",
            hint="give it on stdin, or in a file: hv cp FILE ID:PATH",
        )
    return Duplex(default_paths().socket, f"/v1/sessions/{quoted(session)}/exec?size={len(command)}", command)


@click.command(short_help="Copy files into a session, or out of one.")
@click.argument("source")
@click.argument("target")
def cp(source: str, target: str) -> None:
    """Copy a file or directory: `hv cp ID:PATH PATH` out of a session, `hv cp PATH ID:PATH` into it. A PATH in the
    session that begins neither with / nor with ~ is one of the repository."""
    connect()
    (taken, inside), (given, place) = _parted(source), _parted(target)
    if (taken is None) == (given is None):
        raise BadInput("one of the two is in a session, and the other is not", hint="hv cp ID:PATH PATH")
    left = 0
    with _again("cp", source, target), _Bar() as bar:
        if taken is not None:
            left = from_guest(lambda argv: _opened(taken, argv), inside, Path(target), bar.update).left_out
        elif given is not None:
            to_guest(lambda argv: _opened(given, argv), Path(source), place, bar.update)
    if left:
        click.echo(f"{left} sockets and devices were left out", err=True)


def _parted(name: str) -> tuple[str | None, str]:
    """A session and a path in it; no session for a path of this host: one with a slash before the colon."""
    session, colon, path = name.partition(":")
    return (session, path or ".") if colon and session and "/" not in session else (None, name)


class _Bar:
    """How much was copied, for a person who waits."""

    def __init__(self) -> None:
        self._size = self._shown = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo(err=True)

    def update(self, size: int) -> None:
        self._size += size
        if sys.stderr.isatty() and self._size - self._shown >= 1 << 20:
            self._shown = self._size
            click.echo(f"\r{self._size >> 20} MiB", nl=False, err=True)


@click.command(short_help="Open a port of a session on this host.")
@SESSION
@click.argument("port", metavar="GUESTPORT[:HOSTPORT]")
@click.option("--close", is_flag=True, help="Close it instead.")
@JSON
def port(session: str, port: str, close: bool, as_json: bool) -> None:
    """Lead a port of this host's loopback to one of the session's. It stays open until the session stops, and is open
    again when the session goes on."""
    guest, host = _ports(port)
    path = f"/v1/sessions/{quoted(session)}/ports"
    if close:
        connect().call("DELETE", f"{path}/{guest}")
        click.echo(json.dumps({"guest": guest, "host": None}) if as_json else f"{guest} is closed")
        return
    found = connect().call("POST", path, {"guest": guest, "host": host})
    click.echo(json.dumps(found) if as_json else f"127.0.0.1:{found['host']}")


def _ports(text: str) -> tuple[int, int | None]:
    guest, colon, host = text.partition(":")
    try:
        return int(guest), int(host) if colon else None
    except ValueError:
        raise BadInput(f"{text!r} is no port", hint="hv port ID 3000, or 3000:8080 to have it at 8080 here") from None


@click.command("ssh-config", short_help="Print how ssh reaches a session.")
@SESSION
@JSON
def ssh_config(session: str, as_json: bool) -> None:
    """Print the lines for ~/.ssh/config with which `ssh hv-NAME`, and editors that use ssh, reach the session."""
    found = connect().call("GET", f"/v1/sessions/{quoted(session)}/ssh-config")
    click.echo(json.dumps(found) if as_json else found["text"], nl=as_json)
