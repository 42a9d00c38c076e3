"""Find what the work changed, in the host's bare copies of the repository and its submodules."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hiveyard.kit.text import one_line
from hiveyard.repository.git import git
from hiveyard.repository.submodules import bare_copy, links, submodules

_DIFF_OPTIONS = (
    *("--no-ext-diff", "--no-textconv", "--no-color", "-M"),
    *("--submodule=short", "--ignore-submodules=none", "-O/dev/null"),
    *("--diff-algorithm=default", "--indent-heuristic", "-l1000"),
)
"""Options for a patch that can be applied, whatever the user's git is configured to show."""


class Change(NamedTuple):
    """A change from `base` to `head` in the bare repository `at`. `path` is the place of its work tree in the user's
    repository; it is empty for that repository itself."""

    at: Path
    path: str
    base: str
    head: str

    def words(self, *flags: str) -> tuple[str, ...]:
        """Return git's arguments for a patch whose paths begin at the top of the user's repository."""
        below = f"{self.path}/" if self.path else ""
        prefixes = (f"--src-prefix=a/{below}", f"--dst-prefix=b/{below}")
        return ("--git-dir", str(self.at), "diff", *_DIFF_OPTIONS, *prefixes, *flags, self.base, self.head)


async def changes(origin: Path, base: str, head: str, branch: str) -> list[Change]:
    """Return what the work changed: in the repository, then in its submodules."""
    found = [Change(origin, "", base, head)]
    for submodule in submodules(origin):
        at = bare_copy(origin, submodule)
        tip = await tip_of(at, branch)
        if tip is not None and tip != submodule.commit:
            found.append(Change(at, submodule.path, submodule.commit, tip))
    return found


async def tip_of(at: Path, branch: str) -> str | None:
    """Return the commit of a branch; None if there is no such branch."""
    done = await git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", at=at)
    return done.stdout.decode().strip() if done.ok else None


class _Range(NamedTuple):
    """The commits between which the work in the repository `at` lies."""

    at: Path
    base: str
    tip: str


async def submodule_notices(origin: Path, base: str, head: str, branch: str) -> list[str]:
    """Return sentences about submodules whose work the commit `head` does not record."""
    ranges = {"": _Range(origin, base, head)}
    for submodule in submodules(origin):
        at = bare_copy(origin, submodule)
        ranges[submodule.path] = _Range(at, submodule.commit, await tip_of(at, branch) or submodule.commit)
    notices = []
    for outer, superproject in ranges.items():
        before = {link.path: link.commit for link in await links(superproject.at, superproject.base)}
        for link in await links(superproject.at, superproject.tip):
            path = f"{outer}/{link.path}" if outer else link.path
            if link.commit != before.get(link.path) or path in ranges:
                notices += _submodule_notice(path, link.commit, ranges.get(path))
    return notices


def _submodule_notice(path: str, recorded: str, inner: _Range | None) -> list[str]:
    name = one_line(path.encode("utf-8", "replace").decode(), 120)
    if inner is None:
        return [f"submodule {name}: only its commit {recorded[:12]} is recorded, its content was not collected"]
    if recorded == inner.tip:
        return []
    if recorded == inner.base:
        return [f"submodule {name}: its work was collected, but the superproject does not record it"]
    return [f"submodule {name}: the superproject records commit {recorded[:12]}, which was not collected"]
