"""`hv diff` and `hv apply`: the result of a task or session."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import click

from hiveyard.cli.names import ONLY
from hiveyard.cli.options import JSON
from hiveyard.cli.work import only_candidate, request_either
from hiveyard.core.errors import NothingToApply
from hiveyard.kit.text import decode, printable

_COLORS = {"+": "green", "-": "red", "@": "cyan"}


@click.command(short_help="Show what an agent changed.")
@ONLY
@click.option("--stat", is_flag=True, help="Print only counts.")
@JSON
def diff(work: str | None, stat: bool, as_json: bool) -> int:
    """Show what a task or session changed, from its base to its branch. Piped, it is a patch, byte for byte. For a
    running session this is the current work. Without ID, it shows the only task or session."""
    work = only_candidate("diff") if work is None else work
    if as_json:
        found = _found(work)
        click.echo(
            json.dumps({key: found[key] for key in ("id", "branch", "base", "commits", "diffstat", "patch", "notice")})
        )
        return 0
    from hiveyard import repository

    if (source := _source(work)) is None:
        return 0
    where = Path(source["origin"]), source["base"], source["head"], source["branch"]
    for change in anyio.run(repository.changes, *where):
        argv = ["git", *change.words("--stat" if stat else "--binary")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as git:
            assert git.stdout is not None
            for line in git.stdout:
                _print(line)
        if git.returncode:
            return git.returncode
    return 0


def _print(line: bytes) -> None:
    """Print a line without terminal escapes, which a file may contain; into a pipe or a file, print it unchanged."""
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(line)
        return
    text = printable(decode(line)).rstrip("\n")
    click.secho(text, fg=_COLORS.get(text[:1]))


@click.command(short_help="Bring an agent's branch into your repository.")
@ONLY
@click.option("--merge", is_flag=True, help="Also fast-forward the branch you are on.")
@click.option(
    "-b", "--branch", metavar="NAME", help="The branch's name there (default: its name in the task or session)."
)
@click.option("--into", type=click.Path(file_okay=False), help="Another clone of the repository.")
@JSON
def apply(work: str | None, merge: bool, branch: str | None, into: str | None, as_json: bool) -> None:
    """Make the branch of a task or session in your repository. Your checkout does not change without --merge, and no
    other work is overwritten. Without ID, it takes the only task or session."""
    work = only_candidate("apply") if work is None else work
    from hiveyard import repository

    if (source := _source(work)) is None:
        raise NothingToApply(f"{work} has no changes", hint=f"hv show {work}")
    done = anyio.run(
        lambda: repository.apply(
            Path(source["origin"]),
            _target(source["repo"], into),
            base=source["base"],
            branch=source["branch"],
            name=branch,
            merge=merge,
        )
    )
    if as_json:
        click.echo(json.dumps({**done._asdict(), "repository": str(done.repository)}))
        return
    click.echo(f"{done.branch} {'made' if done.created else 'is'} at {done.head[:12]} in {done.repository}")
    for notice in done.notices:
        click.echo(notice)
    if done.merged:
        click.echo("your checkout was fast-forwarded to it")
    elif not merge:
        # --no-overwrite-ignore protects files that git ignores.
        click.echo(f"next: git -C {shlex.quote(str(done.repository))} merge --no-overwrite-ignore {done.branch}")


def _found(work: str) -> dict[str, Any]:
    """Return where the work is on the host. The work of a running session is collected first."""
    return request_either(work, ("POST", "/harvest"), ("GET", "/source")).found


def _source(work: str) -> dict[str, Any] | None:
    """Return where the work is, or None if nothing was changed. Raises NothingToApply for a task that still runs."""
    source = _found(work)
    if source["notice"]:
        click.echo(f"· {source['notice']}", err=True)
    if source["head"] is None and not source["over"]:
        raise NothingToApply(f"{work} still runs: its result is available when it has ended", hint=f"hv logs -f {work}")
    return None if source["head"] in (None, source["base"]) else source


def _target(repo: str, into: str | None) -> Path:
    """Return the task's own repository if it is on this host, else the current directory."""
    if into is not None:
        return Path(into).absolute()
    return Path(repo) if Path(repo).is_absolute() else Path.cwd()
