"""`hv exec`, `hv cp`, `hv port`, `hv ssh-config`: access from this host to a running session."""

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
from hiveyard.cli.attach import own_terminal, run_on_terminal
from hiveyard.cli.connect import connect
from hiveyard.cli.copy import from_guest, to_guest
from hiveyard.cli.names import SESSION
from hiveyard.cli.options import JSON
from hiveyard.core.errors import BadInput, DaemonUnreachable
from hiveyard.kit.text import one_line
from hiveyard.paths import default_paths

_ARGV_LIMIT = 4 << 20
"""Bytes of a command, as JSON, that the daemon accepts."""
_PIECE = 64 << 10


@click.command(
    "exec",
    short_help="Run a command in a session.",
    # Everything after the session belongs to the command, also -h.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("-T", "--no-terminal", is_flag=True, help="Run it without a terminal, even at one.")
@SESSION
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND...")
def exec_(session: str, command: tuple[str, ...], no_terminal: bool) -> int:
    """Run COMMAND in the session's repository, as the agent's user. At a terminal it has one; otherwise stdin is passed
    in, and stdout and stderr stay separate. The exit code is the command's."""
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise BadInput("there is no command after --", hint="hv exec ID -- COMMAND")
    client = connect()
    if not no_terminal and sys.stdin.isatty() and sys.stdout.isatty():
        body = {"argv": list(command), **own_terminal()}
        return run_on_terminal(client.call("POST", f"/v1/sessions/{quoted(session)}/terminal", body)["argv"])
    with _retry_hint("exec", "-T", session, "--", *command), _open(session, command) as duplex:
        return execute(duplex)


def execute(duplex: Duplex) -> int:
    """Connect the command to this process's stdin, stdout and stderr until it ends, and return its exit code."""
    duplex.feed_beside(_stdin())
    outputs = {b"o": sys.stdout.buffer, b"e": sys.stderr.buffer}
    while True:
        letter, data = duplex.next()
        if letter == b"x":
            return int(data)
        outputs[letter].write(data)
        outputs[letter].flush()


def _stdin() -> Iterator[bytes]:
    while piece := os.read(sys.stdin.fileno(), _PIECE):
        yield piece


@contextmanager
def _retry_hint(*words: str) -> Iterator[None]:
    """Add the command line that tries again to the error of a daemon that has ended: hv starts the next daemon."""
    try:
        yield
    except DaemonUnreachable as error:
        raise DaemonUnreachable(error.message, hint=one_line(f"hv {shlex.join(words)}", 400)) from error


def _open(session: str, argv: Sequence[str]) -> Duplex:
    try:
        command = json.dumps(argv, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the command is not UTF-8: {os.fsencode(error.object[:200])!r}") from None
    if len(command) > _ARGV_LIMIT:
        raise BadInput(
            f"the command has {len(command)} bytes, the limit is {_ARGV_LIMIT}",
            hint="pass the data on stdin, or in a file: hv cp FILE ID:PATH",
        )
    return Duplex(default_paths().socket, f"/v1/sessions/{quoted(session)}/exec?size={len(command)}", command)


@click.command(short_help="Copy files into a session, or out of it.")
@click.argument("source")
@click.argument("target")
def cp(source: str, target: str) -> None:
    """Copy a file or directory: `hv cp ID:PATH PATH` out of a session, `hv cp PATH ID:PATH` into it. A PATH in the
    session that begins neither with / nor with ~ is relative to the repository."""
    connect()
    (source_session, source_path), (target_session, target_path) = _split(source), _split(target)
    if (source_session is None) == (target_session is None):
        raise BadInput("exactly one of SOURCE and TARGET must be in a session", hint="hv cp ID:PATH PATH")
    left_out = 0
    with _retry_hint("cp", source, target), _ProgressLine() as progress:
        if source_session is not None:
            copied = from_guest(lambda argv: _open(source_session, argv), source_path, Path(target), progress.update)
            left_out = copied.left_out
        elif target_session is not None:
            to_guest(lambda argv: _open(target_session, argv), Path(source), target_path, progress.update)
    if left_out:
        click.echo(f"{left_out} sockets and devices were left out", err=True)


def _split(name: str) -> tuple[str | None, str]:
    """Split `SESSION:PATH`. Return None as the session for a path of this host, such as one with a slash before the
    colon."""
    session, colon, path = name.partition(":")
    return (session, path or ".") if colon and session and "/" not in session else (None, name)


class _ProgressLine:
    """The amount of copied data, on stderr if that is a terminal."""

    def __init__(self) -> None:
        self._size = self._shown = 0

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo(err=True)

    def update(self, size: int) -> None:
        self._size += size
        if sys.stderr.isatty() and self._size - self._shown >= 1 << 20:
            self._shown = self._size
            click.echo(f"\r{self._size >> 20} MiB", nl=False, err=True)


@click.command(short_help="Forward a port of this host into a session.")
@SESSION
@click.argument("port", metavar="GUESTPORT[:HOSTPORT]")
@click.option("--close", is_flag=True, help="Stop forwarding it.")
@JSON
def port(session: str, port: str, close: bool, as_json: bool) -> None:
    """Forward a port of this host's loopback to a port of the session. It is open until the session stops, and opens
    again when the session is resumed."""
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
        raise BadInput(f"{text!r} is not a port", hint="hv port ID 3000, or 3000:8080 for port 8080 here") from None


@click.command("ssh-config", short_help="Print how ssh reaches a session.")
@SESSION
@JSON
def ssh_config(session: str, as_json: bool) -> None:
    """Print the lines for ~/.ssh/config that let `ssh hv-NAME`, and editors that use ssh, reach the session."""
    found = connect().call("GET", f"/v1/sessions/{quoted(session)}/ssh-config")
    click.echo(json.dumps(found) if as_json else found["text"], nl=as_json)
