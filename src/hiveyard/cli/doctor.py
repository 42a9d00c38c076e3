"""`hv doctor`: check what Hiveyard needs on this host, by trying it."""

from __future__ import annotations

import json

import click

from hiveyard.cli.connect import connect
from hiveyard.cli.options import JSON


@click.command(short_help="Check what Hiveyard needs on this host.")
@JSON
def doctor(as_json: bool) -> int:
    """Check everything that Hiveyard needs on this host. Each failure comes with a fix. The exit code is 1 if something
    is missing without which nothing runs."""
    checks = connect().call("GET", "/v1/doctor")
    if as_json:
        click.echo(json.dumps(checks, indent=2))
    else:
        width = max(len(check["name"]) for check in checks)
        for check in checks:
            mark, color = ("ok", "green") if check["ok"] else ("no", "red" if check["needed"] else "yellow")
            click.echo(f"{click.style(mark, fg=color)}  {check['name']:<{width}} {check['detail']}")
            if not check["ok"] and check["fix"]:
                click.echo(f"    {'':<{width}} try: {check['fix']}")
    return int(any(check["needed"] and not check["ok"] for check in checks))
