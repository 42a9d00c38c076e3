"""`hv system`, `hv export` and `hv import`: disk usage, and moving sessions between installations."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.names import SESSION
from hiveyard.cli.options import JSON
from hiveyard.core.errors import BadInput
from hiveyard.kit.text import one_line


@click.group()
def system() -> None:
    """Show and free disk space; find machines that nothing needs."""


@system.command("df")
@click.option("-v", "--verbose", is_flag=True, help="Show each item, and which command frees it.")
@JSON
def df(verbose: bool, as_json: bool) -> None:
    """Show the real disk usage of everything that Hiveyard stores. Shared data counts once, where it is found first."""
    found = connect().call("GET", "/v1/system/df")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if verbose:
        rows = [[one["kind"], one_line(one["name"], 60), show.size(one["size"]), one["freed_by"], one["why"]]
                for one in sorted(found["costs"], key=lambda one: -one["size"])]  # fmt: skip
        show.table(rows, ["KIND", "NAME", "SIZE", "FREED BY", "WHY"])
    else:
        show.table(_by_kind(found["costs"]), ["KIND", "COUNT", "SIZE", "PRUNE FREES", "PRUNE --ALL FREES"])
    every = show.size(found["reclaimable_all"])
    click.echo(f"\n{show.size(found['total'])} in all; hv system prune frees {show.size(found['reclaimable'])}, "
               f"with --all {every}; {show.size(found['free'])} are free")  # fmt: skip


@system.command("prune")
@click.option("--dry-run", is_flag=True, help="Only print what would be freed.")
@click.option("--all", "everything", is_flag=True, help="Also remove images that no session uses.")
@JSON
def prune(dry_run: bool, everything: bool, as_json: bool) -> int:
    """Free what nothing needs: partly made remains, images that have a newer build, and data made from images that are
    gone. Nothing that a session or a snapshot needs is removed. Sessions may run meanwhile."""
    done = connect().call("POST", "/v1/system/prune", all=everything, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(done, indent=2))
        return 1 if done["failed"] else 0
    for one in done["removed"]:
        click.echo(f"{one['kind']} {one_line(one['name'], 60)}  {show.size(one['size'])}  {one['why']}")
    for failure in done["failed"]:
        click.echo(f"not freed: {one_line(failure, 300)}", err=True)
    click.echo(f"{'would free' if dry_run else 'freed'} {show.size(done['freed'])}")
    return 1 if done["failed"] else 0


@system.command("reconcile")
@JSON
def reconcile(as_json: bool) -> int:
    """Compare the journal with the machines that exist, and remove machines that nothing needs. The daemon does this
    each minute. A machine is removed when two comparisons in a row have found it. The exit code is 1 if a provider did
    not answer: nothing of it was removed."""
    done = connect().call("POST", "/v1/system/reconcile")
    if as_json:
        click.echo(json.dumps(done, indent=2))
        return 1 if done["silent"] else 0
    for kind, words in (("removed", "removed"), ("suspected", "not needed; removed if it is found again")):
        for name in done[kind]:
            click.echo(f"{name}: {words}")
    for name in done["silent"]:
        click.echo(f"the provider {name} did not answer", err=True)
    if not any(done.values()):
        click.echo("every machine is needed")
    return 1 if done["silent"] else 0


def _by_kind(costs: list[dict[str, Any]]) -> list[list[str]]:
    kinds = dict.fromkeys(one["kind"] for one in costs)
    rows = []
    for kind in kinds:
        of_kind = [one for one in costs if one["kind"] == kind]
        sums = [
            sum(one["size"] for one in of_kind if one["freed_by"] in when)
            for when in (("prune",), ("prune", "prune --all"))
        ]
        rows.append([kind, str(len(of_kind)), show.size(sum(one["size"] for one in of_kind)), *map(show.size, sums)])
    return rows


@click.command("export", short_help="Write a stopped session into a file.")
@SESSION
@click.argument("file", type=click.Path())
@JSON
def export(session: str, file: str, as_json: bool) -> None:
    """Write a stopped session into FILE (- is stdout): its files, conversation, journal and branch, without keys and
    snapshots. `hv import` imports it on another host."""
    client, path = connect(), f"/v1/sessions/{quoted(session)}/export"
    if file != "-":
        done = client.call("POST", path, {"path": str(Path(file).absolute())})
        click.echo(json.dumps(done) if as_json else f"{done['path']}  {show.size(done['size'])}")
        return
    if sys.stdout.isatty():
        raise BadInput("an archive is not written to a terminal", hint=f"hv export {session} {session}.hv.tar.gz")
    with tempfile.TemporaryDirectory(prefix="hv-export-") as scratch:
        archive = Path(scratch) / "session.tar.gz"
        client.call("POST", path, {"path": str(archive)})
        with archive.open("rb") as source:
            shutil.copyfileobj(source, sys.stdout.buffer)


@click.command("import", short_help="Import a session from a file.")
@click.argument("file", type=click.Path())
@click.option("--new", is_flag=True, help="Give it a new id (default: it keeps its id).")
@click.option("--name", help="Give it another name.")
@click.option("--provider", help="The provider to run it on (default: its own, or the strongest that works).")
@JSON
def import_(file: str, new: bool, name: str | None, provider: str | None, as_json: bool) -> None:
    """Import a session from FILE (- is stdin). `hv resume` then continues it in the same conversation. You may import
    an archive that you do not trust: nothing in it runs on the host."""
    with tempfile.TemporaryDirectory(prefix="hv-import-") as scratch:
        path = Path(file).absolute()
        if file == "-":
            path = Path(scratch) / "session.tar.gz"
            with path.open("wb") as target:
                shutil.copyfileobj(sys.stdin.buffer, target)
        found = connect().call(
            "POST", "/v1/imports", {"path": str(path), "new": new, "name": name, "provider": provider}
        )
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"imported {found['name']}: hv resume {found['name']}", err=True)
    click.echo(found["id"])
