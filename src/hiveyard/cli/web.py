"""`hv web`: sign a browser in to the page, and list those that are."""

from __future__ import annotations

import json
import os
import sys

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.options import JSON


@click.group(invoke_without_command=True, short_help="Open the page.")
@click.option("--read-only", is_flag=True, help="The browser may look, and change nothing.")
@click.option("--no-open", is_flag=True, help="Only print the link.")
@JSON
@click.pass_context
def web(context: click.Context, read_only: bool, no_open: bool, as_json: bool) -> None:
    """Print a link that signs a browser in to the page: it works once, within a minute. On a desktop it is opened, too.

    The browser stays signed in for 30 days, and the page is there for as long as the daemon runs."""
    if context.invoked_subcommand is not None:
        return
    found = connect().call("POST", "/v1/web/links", {"read_only": read_only})
    click.echo(json.dumps(found) if as_json else found["url"])
    if not as_json and not no_open and sys.stdout.isatty() and _has_desktop():
        import webbrowser

        webbrowser.open(found["url"])


def _has_desktop() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@web.command(short_help="List the browsers that are signed in.")
@click.option("--revoke", metavar="DEVICE", help="Sign one out, by its id or the start of it.")
@JSON
def devices(revoke: str | None, as_json: bool) -> None:
    """List the browsers that are signed in to the page, the newest first. USED is exact to an hour."""
    client = connect()
    if revoke is not None:
        removed = client.call("DELETE", f"/v1/web/devices/{quoted(revoke)}")
        click.echo(json.dumps(removed) if as_json else f"{removed['id']} is signed out")
        return
    found = client.call("GET", "/v1/web/devices")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    found = show.plain(found)
    rows = [
        [
            one["id"],
            one["name"],
            "look" if one["read_only"] else "all",
            show.age(one["created_at"]),
            show.age(one["seen_at"]),
        ]
        for one in found
    ]
    show.table(rows, ("ID", "BROWSER", "MAY", "SIGNED IN", "USED"))
