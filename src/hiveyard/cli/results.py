"""Verbs about what came of a task or session: the diff, and bringing the branch home."""

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
from hiveyard.cli.work import either, only
from hiveyard.core.errors import NothingToApply
from hiveyard.kit.text import decode, printable

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@click.command(short_help="Show what an agent changed.")
@ONLY
@click.option("--stat", is_flag=True, help="Only count.")
@JSON
def diff(work: str | None, stat: bool, as_json: bool) -> int:
    """Show what a task or session changed, from its base to its branch. Piped, it is a patch, byte for byte. Of a
    session that runs it is the work as it stands now. Without ID, of the only task or session there is."""
    work = only("diff") if work is None else work
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
    """A file's content may hold terminal escapes: a person's terminal gets none of them, a pipe gets every byte."""
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(line)
        return
    text = printable(decode(line)).rstrip("\n")
    click.secho(text, fg=_COLOURS.get(text[:1]))


@click.command(short_help="Bring an agent's branch into your repository.")
@ONLY
@click.option("--merge", is_flag=True, help="Also fast-forward the branch you are on.")
@click.option("-b", "--branch", metavar="NAME", help="What it is called there (default: as it is in the task).")
@click.option("--into", type=click.Path(file_okay=False), help="The repository to bring it into.")
@JSON
def apply(work: str | None, merge: bool, branch: str | None, into: str | None, as_json: bool) -> None:
    """Bring the branch of a task or session into your repository. Your checkout stays as it is, unless --merge is
    given; nothing is ever overwritten. Without ID, of the only task or session there is."""
    work = only("apply") if work is None else work
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
        click.echo("your checkout was moved forward to it")
    elif not merge:
        # So that a file of yours that git ignores is not overwritten.
        click.echo(f"next: git -C {shlex.quote(str(done.repository))} merge --no-overwrite-ignore {done.branch}")


def _found(work: str) -> dict[str, Any]:
    """Where the work is on the host; that of a session that runs is brought out first."""
    return either(work, ("POST", "/harvest"), ("GET", "/source")).found


def _source(work: str) -> dict[str, Any] | None:
    """Where the work is; None when nothing was changed."""
    source = _found(work)
    if source["notice"]:
        click.echo(f"· {source['notice']}", err=True)
    if source["head"] is None and not source["over"]:
        raise NothingToApply(f"{work} is still at work: its result is there at its end", hint=f"hv logs -f {work}")
    return None if source["head"] in (None, source["base"]) else source


def _target(repo: str, into: str | None) -> Path:
    """The repository the task was made from when it is one on this host, else the one we stand in."""
    if into is not None:
        return Path(into).absolute()
    return Path(repo) if Path(repo).is_absolute() else Path.cwd()
