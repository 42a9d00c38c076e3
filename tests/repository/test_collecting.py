"""A guest gets the repository, an agent works on it, and the work is collected in whatever state it is."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import pytest

from hiveyard import repository
from hiveyard.core.commands import Command
from hiveyard.core.errors import BadBundle, RepositoryError
from hiveyard.repository.collecting import LARGEST, LIMIT
from hiveyard.repository.git import git_output
from tests.repository.conftest import Repo, Session, init

pytestmark = pytest.mark.anyio
BRANCH = "hv/work"


async def begin(repo: Repo, session: Session, *, dirty: bool = False) -> str:
    source = repository.parse_source(str(repo.path))
    taken = await repository.take(source, session.origin, include_dirty=dirty)
    await repository.checkout(session.origin, session.shared, base=taken.base, branch=BRANCH)
    return taken.base


async def end(session: Session, base: str, *, limit: int = LIMIT, largest: int = LARGEST) -> repository.Collected:
    return await repository.collect(
        session.guest, session.origin, session.result, base=base, branch=BRANCH, limit=limit, largest=largest
    )


async def names(session: Session, head: str) -> list[str]:
    return (await git_output("ls-tree", "-r", "--name-only", head, at=session.origin)).split("\n")


async def test_the_guest_gets_the_branch_with_history_tags_and_the_users_name(repo: Repo, session: Session) -> None:
    repo.git("tag", "v1", "HEAD~1")
    repo.git("branch", "other")
    await begin(repo, session)
    said = await session.agent(
        "git branch --show-current; git rev-list --count HEAD; git describe --tags; git config user.name;"
        "git status --porcelain; git rev-parse --abbrev-ref origin/main; ls -A /session"
    )
    assert said.split("\n") == [BRANCH, "2", "v1-1-g" + repo.git("rev-parse", "--short", "HEAD"), "Ada", "origin/main",
                                "repo", ""]  # fmt: skip


async def test_checking_out_again_keeps_the_agents_work(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("echo work > work")
    await repository.checkout(session.origin, session.shared, base=base, branch=BRANCH)
    assert "work" in await session.agent("ls; ls -A /session")
    assert not list(session.root.glob(".push-*"))


async def test_no_configuration_takes_part_in_checking_out(repo: Repo, session: Session, tmp_path: Path) -> None:
    """Neither filters and hooks of the user, nor attributes of the repository, run a program."""
    hooks, mark = tmp_path / "hooks", tmp_path / "mark"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (hooks / "post-checkout").chmod(0o755)
    repo.commit("Attributes", __gitattributes="*.md filter=evil\n", a__md="one\n")
    taken = await repository.take(repository.parse_source(str(repo.path)), session.origin)
    evil = f"touch {mark}"
    for name, value in (("core.hooksPath", str(hooks)), ("core.fsmonitor", evil), ("filter.evil.smudge", evil),
                        ("filter.evil.process", evil), ("filter.evil.required", "true")):  # fmt: skip
        repo.git("config", "--global", name, value)
    await repository.checkout(session.origin, session.shared, base=taken.base, branch=BRANCH)
    assert not mark.exists()
    assert await session.agent("git status --porcelain; cat a.md") == "one\n"


async def test_the_index_is_valid_in_the_guest(repo: Repo, session: Session) -> None:
    """Git reads no file again: its content may be as many gigabytes as it likes."""
    await begin(repo, session)
    await session.agent("touch -r README.md then; printf 'xxxx' > README.md; touch -r then README.md; rm then")
    assert await session.agent("git status --porcelain") == ""


async def test_collecting_without_changes_makes_no_commit(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    assert await end(session, base) == (base, 0, 0, 0, 0, False, None, None, ())


async def test_commits_and_uncommitted_work_are_collected(repo: Repo, session: Session, tmp_path: Path) -> None:
    repo.commit("Ignore", __gitignore="ignored\n")
    base = await begin(repo, session)
    await session.agent(
        "echo three >> README.md; git commit -qam 'Third'; printf '\\0\\1' > binary; echo x > ignored; rm app.py"
    )
    got = await end(session, base)
    assert (got.commits, got.files, got.insertions, got.deletions, got.leftover) == (2, 3, 1, 1, True)
    assert await names(session, got.head) == [".gitignore", "README.md", "binary"]
    assert got.head == await git_output("rev-parse", f"refs/heads/{BRANCH}", at=session.origin)
    assert await git_output("log", "-1", "--format=%an %s", got.head, at=session.origin) == ("Ada Uncommitted work")
    repo.git("apply", "--index", str(got.patch))
    assert repo.git("write-tree") == await git_output("rev-parse", f"{got.head}^{{tree}}", at=session.origin)


@pytest.mark.parametrize("script", ["true", "echo x > x", "echo x > x; git add x; git commit -q --amend -m x"])
async def test_collecting_twice_gives_the_same(repo: Repo, session: Session, script: str) -> None:
    base = await begin(repo, session)
    await session.agent(script)
    first, second = await end(session, base), await end(session, base)
    assert (first.head, first.commits) == (second.head, second.commits)


async def test_a_shallow_repository_can_be_pushed_and_collected(repo: Repo, session: Session, tmp_path: Path) -> None:
    repo.git("clone", "--quiet", "--depth=1", f"file://{repo.path}", str(tmp_path / "shallow"))
    base = await begin(Repo(tmp_path / "shallow"), session)
    await session.agent("echo x > x; git add x; git commit -qm x; test $(git rev-list --count HEAD) = 2")
    assert (await end(session, base)).commits == 1


async def test_a_sha256_repository_can_be_pushed_and_collected(session: Session, tmp_path: Path) -> None:
    repo = init(tmp_path / "long", "--object-format=sha256")
    repo.commit("First", a="1\n")
    base = await begin(repo, session)
    await session.agent("echo x > x")
    assert (await end(session, base)).commits == 1


async def test_uncommitted_changes_of_the_user_are_the_base(repo: Repo, session: Session) -> None:
    repo.write("README.md", "dirty\n")
    base = await begin(repo, session, dirty=True)
    assert await session.agent("cat README.md; git status --porcelain") == "dirty\n"
    await session.agent("echo more >> README.md")
    got = await end(session, base)
    assert (got.commits, got.insertions, got.deletions) == (1, 1, 0)


CONFLICT = """
git checkout -qb side; echo side > README.md; git commit -qam side
git checkout -q -; echo here > README.md; git commit -qam here
"""
NESTED = "git init -q deep; echo x > deep/x; cp .git/config deep/.git/; git -C deep add x; git -C deep commit -qm x;"
LEFT: dict[str, tuple[str, str]] = {
    "a merge in progress": (CONFLICT + "git merge side || true", "merge or rebase"),
    "a rebase in progress": (CONFLICT + "git rebase side || true", "merge or rebase"),
    "a cherry-pick in progress": (CONFLICT + "git cherry-pick side || true", "merge or rebase"),
    "a detached HEAD": ("git checkout -q --detach; echo x > x; git add x; git commit -qm x", ""),
    "another branch": ("git checkout -qb elsewhere; echo x > x; git add x; git commit -qm x", ""),
    "a branch not checked out": (
        "git checkout -qb aside; echo x > x; git add x; git commit -qm x; git checkout -q -",
        "not checked out",
    ),
    "an orphan branch": ("git checkout -q --orphan new; echo x > x", ""),
    "an orphan commit": ("git checkout -q --orphan new; echo x > x; git add x; git commit -qm x", "rewritten"),
    "an amended base": ("echo x > x; git add x; git commit -q --amend -m other", "rewritten"),
    "a locked index": ("echo x > x; touch .git/index.lock .git/HEAD.lock .git/refs/heads/x.lock", ""),
    "a corrupt index": ("echo x > x; echo rubbish > .git/index", ""),
    "a removed .git": ("echo x > x; rm -rf .git", "unusable"),
    "a corrupt .git": ("echo x > x; git commit -qam x || true; rm -rf .git/objects/*", "unusable"),
    "a .git that is a link": ("echo x > x; mv .git /session/elsewhere; ln -s /session/elsewhere .git", "unusable"),
    "a .git that is a file": ("echo x > x; rm -rf .git; echo 'gitdir: /etc' > .git", "unusable"),
    "a broken config": ("echo x > x; echo '[[[' > .git/config", "unusable"),
    "hooks that fail": (
        "mkdir -p .git/hooks; echo x > x; for h in pre-commit commit-msg reference-transaction; do"
        " printf '#!/bin/sh\\nexit 1' > .git/hooks/$h;"
        " chmod +x .git/hooks/$h; done",
        "",
    ),
    "a wild config": (
        "echo x > x; git config core.fsmonitor /bin/false; git config core.worktree /etc; git config core.bare true;"
        "git config commit.gpgsign true; git config core.hooksPath /etc",
        "",
    ),
    "a nested repository": (NESTED, "plain files"),
    "a nested repository without commits": ("git init -q deep; echo x > deep/x", "plain files"),
    "a nested repository added": (
        NESTED + "git add deep; git commit -qm y",
        "plain files",
    ),
    "names of all kinds": (r"mkdir -p 'a b/-c'; echo x > $'a b/-c/\n\t\"x'; echo x > $'\xff'; ln -s /etc/passwd l", ""),
    "files without permission": ("echo x > x; chmod 0 x; chmod 0 README.md", ""),
}  # fmt: skip


async def test_a_removed_work_tree_is_a_clear_error(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.guest.remove_tree("/session/repo")
    with pytest.raises(RepositoryError, match="removed /session/repo"):
        await end(session, base)


async def test_a_work_tree_that_is_a_link_is_not_followed(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("cd /; mv /session/repo /home/agent/r; ln -s /home/agent/r /session/repo")
    with pytest.raises(RepositoryError):
        await end(session, base)


async def test_a_submodule_stays_as_it_is_recorded(repo: Repo, session: Session, tmp_path: Path) -> None:
    other = init(tmp_path / "other")
    other.commit("Other", lib="x")
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.path), "vendor/other")
    repo.commit("With a submodule")
    base = await begin(repo, session)
    await session.agent("echo x > x")
    got = await end(session, base)
    link = await git_output("ls-tree", got.head, "vendor/other", at=session.origin)
    assert link == repo.git("ls-tree", "HEAD", "vendor/other")
    assert got.files == 1


async def test_lfs_pointers_stay_pointers(repo: Repo, session: Session) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
    repo.commit("Large", __gitattributes="*.bin filter=lfs diff=lfs merge=lfs -text\n", a__bin=pointer)
    base = await begin(repo, session)
    assert await session.agent("cat a.bin") == pointer
    await session.agent("echo x > x")
    got = await end(session, base)
    assert await git_output("show", f"{got.head}:a.bin", at=session.origin) == pointer.strip()


async def test_more_than_the_limit_is_refused(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("head -c 3000000 /dev/urandom > big")
    with pytest.raises(BadBundle, match="at most 1 MiB"):
        await end(session, base, limit=1 << 20)


async def test_a_small_bundle_of_a_huge_file_is_refused(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("head -c 30000000 /dev/zero > big")
    with pytest.raises(BadBundle, match="unpacks to more"):
        await end(session, base, limit=1 << 20)


class Forger:
    """A hostile guest: its `bash` runs an attacker's script instead of the one that collects."""

    def __init__(self, session: Session, script: str) -> None:
        self._guest = session.guest
        self._script = script

    def __getattr__(self, name: str) -> object:
        return getattr(self._guest, name)

    async def run(self, command: Command, **options: object) -> object:
        words = command.words()
        if words[0] == "bash" and "bundle create" in words[2]:
            command = Command(argv=("bash", "-c", "cd /session/repo; " + self._script), cwd="/")
        return await self._guest.run(command, **options)  # type: ignore[arg-type]


BUNDLE = "/session/.result.bundle"
COMMIT = "echo x > x; git add x; git commit -qm x; h=$(git rev-parse HEAD); git update-ref refs/hiveyard/result $h;"
SAY = f'; echo "$h $(stat -c %s {BUNDLE}) 0 ."'
FORGERIES = {
    "no bundle": f"h=$(git rev-parse HEAD); head -c 100000 /dev/urandom > {BUNDLE} {SAY}",
    "a cut bundle": COMMIT + f"git bundle create -q - refs/hiveyard/result ^HEAD~1 | head -c 200 > {BUNDLE} {SAY}",
    "another commit": COMMIT + f"git bundle create -q {BUNDLE} refs/hiveyard/result ^HEAD~1; h={'1' * 40} {SAY}",
    "other references": COMMIT
    + f"git update-ref refs/heads/main $h; git bundle create -q {BUNDLE} refs/hiveyard/result refs/heads/main ^HEAD~1"
    + SAY,
    "an odd reference": COMMIT
    + f"git bundle create -q {BUNDLE} refs/hiveyard/result ^HEAD~1;"
    + f"sed -i 's,refs/hiveyard/result,refs/../../x,' {BUNDLE}"
    + SAY,
    "a filter": COMMIT
    + f"git bundle create -q --version=3 --filter=blob:none {BUNDLE} refs/hiveyard/result ^HEAD~1"
    + SAY,
    "a .git directory in a tree": "b=$(echo x | git hash-object -w --stdin);"
    "t=$(printf '100644 blob %s\\tconfig\\n' $b | git mktree); t=$(printf '040000 tree %s\\t.git\\n' $t | git mktree);"
    "h=$(git commit-tree $t -p HEAD -m x); git update-ref refs/hiveyard/result $h;"
    f"git bundle create -q {BUNDLE} refs/hiveyard/result ^HEAD {SAY}",
    "a .gitmodules that runs code": "b=$(printf '[submodule \"x\"]\\n\\tpath=x\\n\\turl=-u./payload\\n' |"
    " git hash-object -w --stdin); t=$(printf '100644 blob %s\\t.gitmodules\\n' $b | git mktree);"
    "h=$(git commit-tree $t -p HEAD -m x); git update-ref refs/hiveyard/result $h;"
    f"git bundle create -q {BUNDLE} refs/hiveyard/result ^HEAD {SAY}",
    "an object that is missing": COMMIT
    + "b=$(git rev-parse HEAD:x); rm -f .git/objects/${b:0:2}/${b:2};"
    + "printf '# v2 git bundle\\n-%s\\n%s refs/hiveyard/result\\n\\n' $(git rev-parse HEAD~1) $h > "
    + BUNDLE
    + "; printf '%s\\n%s\\n' $h $(git rev-parse HEAD^{tree}) | git pack-objects -q --stdout >> "
    + BUNDLE
    + SAY,
    "a link to a file outside": f"h=$(git rev-parse HEAD); ln -sf /etc/passwd {BUNDLE}; echo $h 100 0 .",
    "a size that is not so": f"h={'2' * 40}; echo x > {BUNDLE}; echo $h 90000000 0 .",
    "an endless size": f"h={'2' * 40}; echo $h 999999999999999 0 .",
    "an answer that is none": "head -c 1000000 /dev/urandom",
    "a size that is a negative number": f"h={'2' * 40}; echo $h -5 0 .",
    "large files that are not named": f"h={'2' * 40}; echo $h 0 999999999 .; echo no list",
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_result_is_refused(forgery: str, repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    refs = await git_output("for-each-ref", at=session.origin)
    forger = Forger(session, FORGERIES[forgery])
    with pytest.raises(RepositoryError):
        await repository.collect(forger, session.origin, session.result, base=base, branch=BRANCH)  # type: ignore[arg-type]
    assert await git_output("for-each-ref", at=session.origin) == refs
    assert not (session.result / "changes.patch").exists()


COMMIT_TYPE, TREE_TYPE = (1, b"commit"), (2, b"tree")
Forged = tuple[tuple[int, bytes], bytes]


def packed(one: Forged) -> bytes:
    """Return an object in the format of a pack."""
    (kind, _), content = one
    head, size = [kind << 4 | len(content) & 15], len(content) >> 4
    while size:
        head[-1] |= 128
        head.append(size & 127)
        size >>= 7
    return bytes(head) + zlib.compress(content)


def forged(base: str, *objects: Forged) -> tuple[str, bytes]:
    """Return the last object's id, and a bundle with it as the result."""
    (_, kind), content = objects[-1]
    head = hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content).hexdigest()
    pack = struct.pack(">4sII", b"PACK", 2, len(objects)) + b"".join(map(packed, objects))
    top = f"# v2 git bundle\n-{base} \n{head} refs/hiveyard/result\n\n".encode()
    return head, top + pack + hashlib.sha1(pack).digest()


@pytest.mark.parametrize("what", ["a tree of zeros", "a commit with a long message"])
async def test_objects_that_take_too_much_memory_are_refused(what: str, repo: Repo, session: Session) -> None:
    base, memory, large = await begin(repo, session), 128 << 20, 300 << 20
    tree, person = repo.git("rev-parse", "HEAD^{tree}"), "Ada <ada@example.com> 1700000000 +0000"
    commit = f"tree {tree}\nparent {base}\nauthor {person}\ncommitter {person}\n\nx".encode()
    if what == "a tree of zeros":
        head, bundle = forged(base, (TREE_TYPE, bytes(large)), (COMMIT_TYPE, commit))
    else:
        head, bundle = forged(base, (COMMIT_TYPE, commit + b"x" * large))
    assert len(bundle) < 1 << 20
    (session.shared / ".result.bundle").write_bytes(bundle)
    forger = Forger(session, f"echo '{head} {len(bundle)} 0 .'")
    places = session.origin, session.result
    with pytest.raises(BadBundle, match="more than 128 MiB of memory"):
        await repository.collect(forger, *places, base=base, branch=BRANCH, memory=memory)  # type: ignore[arg-type]
    # This limit is enough for normal work.
    await session.agent("echo three >> README.md")
    got = await repository.collect(session.guest, *places, base=base, branch=BRANCH, memory=memory)
    assert (got.commits, got.insertions) == (1, 1)


async def test_nothing_that_a_guest_planted_in_its_repository_runs_on_the_host(
    repo: Repo, session: Session, tmp_path: Path
) -> None:
    base = await begin(repo, session)
    marker = tmp_path / "ran"
    (session.shared / "evil").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (session.shared / "evil").chmod(0o755)
    evil = session.shared / "evil"
    await session.agent(
        f"echo x > x; printf '* filter=e diff=e merge=e\\n' > .gitattributes; git config core.fsmonitor {evil};"
        f"git config filter.e.clean {evil}; git config diff.e.textconv {evil}; git config diff.external {evil};"
        f"mkdir -p .git/hooks; cp /session/evil .git/hooks/post-commit; echo /etc > .git/objects/info/alternates"
    )
    got = await end(session, base)
    assert got.commits == 1
    assert not marker.exists()
