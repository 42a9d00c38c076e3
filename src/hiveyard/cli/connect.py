"""Find the daemon, or start it under a lock, and report its own error if it cannot start."""

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
    """An error of a host on which no daemon can be started. Trying again does not help."""


def connect(*, start: bool = True) -> Client:
    """Return a client of the running daemon, and start a daemon if there is none. Raises the error that keeps it from
    starting."""
    paths = default_paths()
    client = Client(paths.socket)
    if client.alive():
        return client
    if not start:
        raise DaemonUnreachable("no daemon is running", hint="hv serve")
    try:
        paths.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(paths.run / "start.lock"):
            if not client.alive():
                _start(paths)
    except OSError as error:
        raise CannotStart(
            f"the daemon cannot be started: {error.filename}: {error.strerror}",
            hint="set HIVEYARD_HOME to a directory that you can write to",
        ) from error
    return client


def _start(paths: Paths) -> None:
    """Start the daemon in a process session of its own, and wait for its result on a pipe."""
    read, write = os.pipe()
    with paths.log.open("ab") as log:
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
        result = pipe.read()
    if result.strip() == b"ready":
        click.echo("started the daemon; `hv stop-daemon` stops it", err=True)
        return
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(result)
        raise ApiError(error["code"], error["message"], error["hint"])
    raise DaemonUnreachable("the daemon did not start", hint=f"tail {paths.log}")
