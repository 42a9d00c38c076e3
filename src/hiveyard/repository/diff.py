"""What the work changed, read from the host's bare repositories: the whole one's part and that of each submodule."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hiveyard.kit.text import one_line
from hiveyard.repository.git import git
from hiveyard.repository.submodules import bare_copy, links, submodules

_PLAIN = (
    *("--no-ext-diff", "--no-textconv", "--no-color", "-M"),
    *("--submodule=short", "--ignore-submodules=none", "-O/dev/null"),
    *("--diff-algorithm=default", "--indent-heuristic", "-l1000"),
)
"""What makes it the same patch, and one that can be applied, whatever the person's git is set to show."""


class Change(NamedTuple):
    """From `base` to `head` of the bare repository `at`, whose work tree is at `path` in that of the whole, or is the
    whole."""

    at: Path
    path: str
    base: str
    head: str

    def words(self, *flags: str) -> tuple[str, ...]:
        """What to ask git for a patch of it whose paths begin at the top of the whole."""
        below = f"{self.path}/" if self.path else ""
        prefixes = (f"--src-prefix=a/{below}", f"--dst-prefix=b/{below}")
        return ("--git-dir", str(self.at), "diff", *_PLAIN, *prefixes, *flags, self.base, self.head)


async def changes(origin: Path, base: str, head: str, branch: str) -> list[Change]:
    """All that the work changed: the repository, then its submodules."""
    found = [Change(origin, "", base, head)]
    for one in submodules(origin):
        at = bare_copy(origin, one)
        tip = await tip_of(at, branch)
        if tip is not None and tip != one.commit:
            found.append(Change(at, one.path, one.commit, tip))
    return found


async def tip_of(at: Path, branch: str) -> str | None:
    """The commit of a branch; None for no such branch."""
    done = await git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", at=at)
    return done.stdout.decode().strip() if done.ok else None


class _Begun(NamedTuple):
    """A repository of the work at its two ends."""

    at: Path
    base: str
    tip: str


async def astray(origin: Path, base: str, head: str, branch: str) -> list[str]:
    """Sentences about submodules whose content the commit `head` does not lead to."""
    had = {"": _Begun(origin, base, head)}
    for one in submodules(origin):
        at = bare_copy(origin, one)
        had[one.path] = _Begun(at, one.commit, await tip_of(at, branch) or one.commit)
    said = []
    for outer, around in had.items():
        before = {link.path: link.commit for link in await links(around.at, around.base)}
        for link in await links(around.at, around.tip):
            path = f"{outer}/{link.path}" if outer else link.path
            if link.commit != before.get(link.path) or path in had:
                said += _about(path, link.commit, had.get(path))
    return said


def _about(path: str, recorded: str, inner: _Begun | None) -> list[str]:
    name = one_line(path.encode("utf-8", "replace").decode(), 120)
    if inner is None:
        return [f"submodule {name}: only its commit {recorded[:12]} is recorded, its content stayed behind"]
    if recorded == inner.tip:
        return []
    if recorded == inner.base:
        return [f"submodule {name}: its work is not what is recorded"]
    return [f"submodule {name}: commit {recorded[:12]} is recorded, which did not come along"]
