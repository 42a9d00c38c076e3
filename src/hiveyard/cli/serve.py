"""`hv serve`, `hv stop-daemon` and `hv version`."""

from __future__ import annotations

import json

import click

from hiveyard import __version__
from hiveyard.cli.connect import connect
from hiveyard.cli.options import JSON
from hiveyard.core.errors import DaemonUnreachable


@click.command(short_help="Run the daemon in the foreground.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Log each command that the daemon runs: --log-level debug.")
def serve(log_level: str | None, verbose: bool) -> int:
    """Run the daemon in the foreground; Ctrl-C stops it and running agents continue. The default level is
    $HIVEYARD_LOG_LEVEL, else info. A daemon that another verb starts has that level, too, and logs to a file."""
    from hiveyard import daemon

    return daemon.main([*(["--log-level", log_level] if log_level else []), *(["-v"] if verbose else [])])


@click.command("stop-daemon", short_help="Stop the daemon.")
@JSON
def stop_daemon(as_json: bool) -> None:
    """Stop the daemon. Agents keep running in their machines; the next verb starts a daemon that takes them over."""
    try:
        found = connect(start=False).call("POST", "/v1/shutdown")
    except DaemonUnreachable:
        click.echo(json.dumps({"stopped": False}) if as_json else "no daemon is running")
        return
    if not wait_for_end(found["pid"]):
        raise DaemonUnreachable(f"daemon {found['pid']} was asked to stop and has not ended yet", hint="hv version")
    running = f"; {found['running']} running tasks continue" if found["running"] else ""
    click.echo(json.dumps({"stopped": True, **found}) if as_json else f"stopped daemon {found['pid']}{running}")


def wait_for_end(pid: int) -> bool:
    """Wait until a process that is no child of this one has ended. Return False if that takes more than 30 seconds."""
    import os
    import select

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 30)[0])
    finally:
        os.close(fd)


@click.command(short_help="Print versions.")
@JSON
def version(as_json: bool) -> None:
    """Print the version of hv, and of the daemon when one is running."""
    try:
        found = connect(start=False).call("GET", "/v1/version")
    except DaemonUnreachable:
        found = None
    if as_json:
        click.echo(json.dumps({"hv": __version__, "daemon": found}))
        return
    click.echo(f"hv {__version__}")
    click.echo(f"daemon {found['version']} (pid {found['pid']})" if found else "no daemon is running")
