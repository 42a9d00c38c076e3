"""Finding the daemon, or starting it: one at a time, under a lock, with its own words when it cannot start."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import click

from hiveyard.api.client import ApiError, Client
from hiveyard.core.errors import DaemonUnreachable
from hiveyard.kit.files import locked
from hiveyard.paths import Paths, default_paths, resolved_environment


class CannotStart(DaemonUnreachable):
    """There is no place for a daemon: trying again does not help."""


def connect(*, start: bool = True) -> Client:
    """A client of the running daemon; starts one when there is none. Raises what keeps the daemon from starting."""
    here = default_paths()
    client = Client(here.socket)
    if client.alive():
        return client
    if not start:
        raise DaemonUnreachable("no daemon is running", hint="hv serve")
    try:
        here.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        here.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(here.run / "start.lock"):
            if not client.alive():
                _start(here)
    except OSError as error:
        raise CannotStart(
            f"the daemon cannot be started: {error.filename}: {error.strerror}",
            hint="set HIVEYARD_HOME to a directory that you can write to",
        ) from error
    return client


def _start(here: Paths) -> None:
    """Start the daemon in a session of its own and wait until it says, through a pipe, how that went."""
    read, write = os.pipe()
    with here.log.open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "hiveyard.daemon", "--ready-fd", str(write)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[write],
            start_new_session=True,
            cwd="/",
            env=resolved_environment(),
        )
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    if said.strip() == b"ready":
        click.echo("started the daemon; `hv stop-daemon` stops it", err=True)
        return
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(said)
        raise ApiError(error["code"], error["message"], error["hint"])
    raise DaemonUnreachable("the daemon did not start", hint=f"tail {here.log}")
