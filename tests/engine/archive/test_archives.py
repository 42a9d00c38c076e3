"""Export sessions, import them into another installation, and refuse hostile archives."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

from hiveyard.core.errors import BadArchive, BadInput, HiveyardError, SessionNotRunning
from hiveyard.core.events import ResultCollected
from hiveyard.engine.archive import importing
from hiveyard.engine.archive.sparse import data_extents
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.request import spawn_from_json
from hiveyard.engine.sessions.start_point import StartPoint
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.repository.submodules import BASE, bare_copy, submodules
from hiveyard.store import lineage
from hiveyard.store.settings import StoreSettings
from tests.engine.conftest import Yard, git
from tests.engine.yards import events, run_turn, spawned, wait_until
from tests.support.nobody import nobody
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


@pytest.fixture
def elsewhere(yard: Yard, tmp_path: Path) -> Yard:
    """Another host, with a journal of its own."""
    return Yard(tmp_path / "elsewhere", replace(yard.settings, store=StoreSettings()), {})


async def exported(engine: Engine, repo: Path, file: Path, **more: object) -> str:
    """Export a stopped session with two turns and some work; return its id."""
    id = await spawned(engine, repo, **more)
    await run_turn(engine, id, "remember apple")
    await run_turn(engine, id, "run echo done > work.txt; ln -s /etc/passwd link; mkfifo pipe; truncate -s 8M hole")
    await engine.sessions.stop(id)
    await engine.exports.export(id, file)
    return id


async def test_an_imported_session_continues_its_conversation(
    yard: Yard, elsewhere: Yard, repo: Path, tmp_path: Path
) -> None:
    file = tmp_path / "it.tar.gz"
    async with yard.open() as engine:
        id = await exported(engine, repo, file, budget_usd=2.0)
        before = await engine.sessions.view(id)
        key = Workspace(yard.paths.sessions / id).keys().placeholder
        with pytest.raises(BadInput, match="already a session"):
            await engine.imports.import_archive(file)
    assert file.stat().st_mode & 0o077 == 0
    assert file.stat().st_size < 8 << 20
    async with elsewhere.open() as engine:
        assert await engine.imports.import_archive(file) == id
        after = await engine.sessions.view(id)
        assert (after.status, after.name, after.branch, after.base) == (
            "stopped",
            before.name,
            before.branch,
            before.base,
        )
        assert (after.created_at, after.budget_usd, after.turns) == (before.created_at, 2.0, 2)
        here = Workspace(elsewhere.paths.sessions / id)
        assert here.keys().placeholder != key
        there = {path.name for path in here.root.glob("[!.]*")} - {"prompts", "events.jsonl"}
        assert there == {"door.json", "heard.jsonl", "meta.json", "origin.git", "result", "shared"}
        assert os.readlink(here.shared / "repo" / "link") == "/etc/passwd"
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        turns = [event.turn for event in await events(engine, id, "turn.ended")]
        assert turns == [1, 2, 3]
        await engine.sessions.collect(id)
        (found,) = await engine.comparisons.compare([id])
        assert "work.txt" in [changed.path for changed in found.files]
        again = await engine.imports.import_archive(file, new=True, name="twin")
        assert again != id
        assert (await engine.sessions.view(again)).name == "twin"
        await engine.sessions.resume(again)
        await wait_until(engine, again, lambda view: view.status == "running")
        assert await run_turn(engine, again, "recall") == "kept: apple"
        for one in (id, again):
            await engine.sessions.stop(one)


async def test_an_archive_contains_no_key(yard: Yard, repo: Path, tmp_path: Path) -> None:
    file = tmp_path / "it.tar.gz"
    async with yard.open() as engine:
        id = await exported(engine, repo, file)
        keys = Workspace(yard.paths.sessions / id).keys()
    assert keys.placeholder.encode() not in gzip.decompress(file.read_bytes())
    with tarfile.open(file) as tar:
        assert not [name for name in tar.getnames() if "door" in name or "snapshots" in name]


async def test_only_a_stopped_session_is_exported_and_no_file_is_overwritten(
    yard: Yard, repo: Path, tmp_path: Path
) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        with pytest.raises(SessionNotRunning, match="is running"):
            await engine.exports.export(id, tmp_path / "x")
        await engine.sessions.stop(id)
        (tmp_path / "x").write_text("mine")
        with pytest.raises(BadInput, match="exists already"):
            await engine.exports.export(id, tmp_path / "x")
        assert (tmp_path / "x").read_text() == "mine"


async def test_holes_take_no_space_in_an_archive_nor_after_the_import(
    yard: Yard, elsewhere: Yard, repo: Path, tmp_path: Path
) -> None:
    """Only the data of a sparse file counts, not its apparent size."""
    file, largest = tmp_path / "it.tar.gz", 400 << 30
    odd = os.fsdecode(b"\xff" + b"o" * 120)
    async with yard.open() as engine:
        id = await exported(engine, repo, tmp_path / "first.tar.gz")
        there = Workspace(yard.paths.sessions / id).shared / "repo"
        for name in ("large", odd):
            with (there / name).open("wb") as hole:
                hole.write(b"begin")
                hole.seek(1 << 30)
                hole.write(b"middle")
                hole.truncate(largest)
        (there / "broken").write_bytes(b"")
        with (there / "broken").open("r+b") as broken:
            for number in range(9000):
                broken.seek(number << 13)
                broken.write(b"%d" % number)
        at_first = {path.name for path in tmp_path.iterdir()}
        async with anyio.create_task_group() as group:
            group.start_soon(engine.exports.export, id, file)
            while not file.exists():
                assert {path.name for path in tmp_path.iterdir()} <= at_first | {file.name}
                await anyio.sleep(0.001)
        broken_up = (there / "broken").read_bytes()
    assert file.stat().st_size < 16 << 20
    gnu = (await anyio.run_process(["tar", "-tvzf", file])).stdout.decode(errors="replace")
    assert [line.split()[2] for line in gnu.splitlines() if line.endswith("/repo/large")] == [str(largest)]
    async with elsewhere.open() as engine:
        assert await engine.imports.import_archive(file) == id
        here = Workspace(elsewhere.paths.sessions / id).shared / "repo"
    for name in ("large", odd):
        assert (here / name).stat().st_size == largest
        assert (here / name).stat().st_blocks * 512 < 1 << 20
        with (here / name).open("rb") as hole:
            assert hole.read(6) == b"begin\0"
            hole.seek(1 << 30)
            assert hole.read(7) == b"middle\0"
    assert (here / "broken").read_bytes() == broken_up
    assert (here / "hole").stat().st_size == 8 << 20


async def test_a_file_that_is_too_sparse_is_refused(yard: Yard, repo: Path, tmp_path: Path) -> None:
    async with yard.open() as engine:
        id = await exported(engine, repo, tmp_path / "first.tar.gz")
        there = Workspace(yard.paths.sessions / id).shared / "repo"
        with (there / "scattered").open("wb") as scattered:
            for number in range(9000):
                scattered.seek(number << 26)
                scattered.write(b"x")
        with pytest.raises(
            BadInput, match=r"^shared/repo/scattered is too sparse for an archive: \d+ bytes are scattered over \d+$"
        ):
            await engine.exports.export(id, tmp_path / "it.tar.gz")
        assert not (tmp_path / "it.tar.gz").exists()
        (there / "scattered").unlink()  # files that a test leaves are searched for secrets


def test_the_maximum_number_of_equal_holes_is_kept(tmp_path: Path) -> None:
    with (tmp_path / "it").open("w+b") as file:
        for number in range(5000):
            file.seek(number << 16)
            file.write(b"x")
        file.flush()
        extents = data_extents(file.fileno(), file.tell())
    assert extents is not None
    assert len(extents) == 4096


# --- hostile archives ------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, bytes], list[tarfile.TarInfo]], None]


def test_an_incomplete_line_of_output_is_left_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.heard.open("wb") as file:
        file.write(b"first\n")
        file.seek(80 << 20, os.SEEK_CUR)
        file.write(b"\nsecond\nlast")
    assert list(workspace.heard_lines()) == [b"first", b"second", b"last"]


@contextmanager
def changed(file: Path) -> Iterator[tuple[dict[str, bytes], list[tarfile.TarInfo]]]:
    """Yield the files of an archive and a list of entries to add; write the archive again at the end of the block."""
    with tarfile.open(file) as tar:
        kept = [member for member in tar if not member.isreg() or member.size < 8 << 20]
        data = {member.name: tar.extractfile(member).read() for member in kept if member.isreg()}  # type: ignore[union-attr]
    more: list[tarfile.TarInfo] = []
    yield data, more
    with tarfile.open(file, "w:gz", compresslevel=1) as tar:
        for member in kept:
            if not member.isreg():
                tar.addfile(member)
            elif member.name in data:
                member.size = len(data[member.name])
                tar.addfile(member, io.BytesIO(data[member.name]))
        for member in more:
            tar.addfile(member, io.BytesIO(b"x" * member.size))


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, to, size
    return info


def manifest(**values: object) -> Change:
    def change(data: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
        data["session/manifest.json"] = json.dumps(json.loads(data["session/manifest.json"]) | values).encode()

    return change


def journal(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Change:
    def apply(data: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
        lines = [json.loads(line) for line in data["session/events.jsonl"].splitlines()]
        data["session/events.jsonl"] = b"".join(json.dumps(line).encode() + b"\n" for line in change(lines))

    return apply


def body(type: str, **values: object) -> Change:
    def change(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for line in lines:
            if line["body"]["type"] == type:
                line["body"] |= values
        return lines

    return journal(change)


def adding(*entries: tarfile.TarInfo) -> Change:
    def change(data: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
        more.extend(entries)

    return change


def without(name: str) -> Change:
    def change(data: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
        del data[name]

    return change


def replaced(name: str, content: bytes) -> Change:
    def change(data: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
        data[name] = content

    return change


def padded(data: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
    data["session/manifest.json"] += b" " * (8 << 20)


def replayed_for_hours(data: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
    data["session/events.jsonl"] += b'{"at":1,"body":{}}\n' * importing._MAX_EVENTS


REFUND = {
    "type": "model.called",
    "protocol": "anthropic",
    "model": "m",
    "status": 200,
    "seconds": 1.0,
    "usage": {"cost_usd": -1000.0},
}
HARM: dict[str, Change] = {
    "climbs out": adding(entry("session/../../climbed", size=1)),
    "is absolute": adding(entry("/tmp/climbed", size=1)),
    "writes through a link": adding(
        entry("session/shared/out", tarfile.SYMTYPE, "../../../.."), entry("session/shared/out/climbed", size=1)
    ),
    "links a file of the host": adding(entry("session/shared/hard", tarfile.LNKTYPE, "../../hiveyard.db")),
    "brings a door key": adding(entry("session/door.json", size=2)),
    "brings a repository": adding(
        entry("session/origin.git", tarfile.DIRTYPE), entry("session/origin.git/config", size=2)
    ),
    "brings snapshots": adding(entry("session/snapshots", tarfile.DIRTYPE)),
    "a link among the host's files": adding(entry("session/result/changes.patch", tarfile.SYMTYPE, "/etc/passwd")),
    "a link as the tape": adding(entry("session/tape.jsonl", tarfile.SYMTYPE, "/etc/passwd")),
    "a newer version": manifest(version=99),
    "an id that is a path": manifest(id="../../x"),
    "an id that is an option": manifest(id="-rf"),
    "a base that is an option": manifest(base="--output=/tmp/climbed"),
    "another branch than its journal": manifest(branch="main"),
    "a format that git does not have": manifest(object_format="--template=/tmp"),
    "a submodule outside": manifest(
        submodules=[{"path": "../x", "outer": "", "module": "m", "name": "n", "commit": "0" * 40, "copy": "000"}]
    ),
    "a submodule's copy outside": manifest(
        submodules=[{"path": "x", "outer": "", "module": "m", "name": "n", "commit": "0" * 40, "copy": "../.."}]
    ),
    "a manifest that is read for ever": padded,
    "no manifest": without("session/manifest.json"),
    "no bundle": without("session/origin.bundle"),
    "a bundle that is none": replaced("session/origin.bundle", b"# v2 git bundle\n\nPACK"),
    "a bundle with an odd reference": replaced(
        "session/origin.bundle", b"# v2 git bundle\n" + b"0" * 40 + b" refs/heads/../../x\n\nPACK"
    ),
    "a journal that is none": replaced("session/events.jsonl", b"{]\n"),
    "an empty journal": replaced("session/events.jsonl", b""),
    "a journal that is replayed for hours": replayed_for_hours,
    "a journal that goes nowhere": journal(lambda lines: lines[:3]),
    "a journal that begins twice": journal(lambda lines: lines[:1] + lines),
    "a session that runs": journal(lambda lines: [line for line in lines if line["body"]["type"] != "session.stopped"]),
    "a base in the journal that is an option": body("session.prepared", base="--output=/tmp/climbed"),
    "a head that is an option": body("result.collected", head="--output=/tmp/climbed"),
    "money back": journal(lambda lines: [*lines, {"at": 1.0, "body": REFUND}]),
    "a budget that nobody can set": journal(
        lambda lines: [*lines, {"at": 1.0, "body": {"type": "session.budget_set", "dollars": 1e300}}]
    ),
    "a turn that no database counts": journal(lambda lines: [line | {"turn": 2**63} for line in lines]),
    "more work than a database counts": body("result.collected", insertions=2**70),
    "tokens that no database counts": journal(
        lambda lines: [*lines, {"at": 1.0, "body": REFUND | {"usage": {"input_tokens": 2**63 - 1}}}]
    ),
    "money without end": journal(lambda lines: [*lines, {"at": 1.0, "body": REFUND | {"usage": {"cost_usd": 1e300}}}]),
    "an unknown agent": manifest(agent="nobody"),
    "an invalid request": body("session.created", request={"repo": "x", "memory_mib": -4}),
}


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    return {}


async def test_a_hostile_archive_is_refused_and_leaves_nothing(
    yard: Yard, elsewhere: Yard, repo: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    file, good = tmp_path / "it.tar.gz", tmp_path / "good.tar.gz"
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run echo done > work.txt")
        await engine.sessions.stop(id)
        await engine.exports.export(id, good)
    async with elsewhere.open() as engine:
        for harm, change in HARM.items():
            with subtests.test(harm):
                file.write_bytes(good.read_bytes())
                with changed(file) as (data, more):
                    change(data, more)
                with pytest.raises(HiveyardError) as refused:
                    await engine.imports.import_archive(file)
                assert isinstance(refused.value, BadArchive | BadInput) or refused.value.code == "agent.unknown"
                assert await engine.sessions.views(over=True) == []
                assert list(elsewhere.paths.sessions.iterdir()) == []
                assert not list(tmp_path.rglob("climbed"))
                assert not Path("/tmp/climbed").exists()
        # Its id is free, so nothing of them is in the way.
        assert await engine.imports.import_archive(good) == id


def test_a_journal_over_the_size_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with file.open("wb") as events:
        events.truncate(importing._MAX_JOURNAL_BYTES + 1)
    with pytest.raises(BadArchive, match="longer than 1024 MiB"):
        importing._check_length(file)


async def test_followers_get_imported_events_and_they_are_not_held_in_memory(
    yard: Yard, elsewhere: Yard, repo: Path, tmp_path: Path
) -> None:
    file, heard = tmp_path / "it.tar.gz", []
    async with yard.open() as engine:
        id = await exported(engine, repo, file)

    async def follow() -> None:
        async with aclosing(engine._r.event_log.store.follow()) as following:
            async for event in following:
                heard.append(event.body.type)
                if event.body.type == "session.imported":
                    return

    async with elsewhere.open() as engine, anyio.create_task_group() as group:
        group.start_soon(follow)
        assert await engine.imports.import_archive(file) == id
        held = engine._r.event_log.store._tail._held
        assert [one.event.body.type for one in held] == ["session.placed", "session.imported"]
    assert (heard[0], heard.count("turn.ended")) == ("session.created", 2)


async def test_fields_that_a_stranger_may_not_set_are_dropped(
    yard: Yard, elsewhere: Yard, repo: Path, tmp_path: Path
) -> None:
    file = tmp_path / "it.tar.gz"
    async with yard.open() as engine:
        await exported(engine, repo, file)
    spec = {
        "repo": str(repo),
        "model": "m\x1b]0;owned\x07",
        "record": "/etc/climbed",
        "network": "open",
        "image": "/etc/x.toml",
        "tape": "/etc/shadow",
    }
    others = [{"type": "machine.booting", "machine": "hv-other", "provider": "qemu"},
              {"type": "port.opened", "host_port": 22, "guest_port": 22}]  # fmt: skip
    with changed(file) as (data, more):
        body("session.created", request=spec, repo="/r\x1b[2J\nx")(data, more)
        journal(lambda lines: [*lines, *({"seq": 1, "at": 1e300, "session": "x", "body": one} for one in others)])(
            data, more
        )
    async with elsewhere.open() as engine:
        id = await engine.imports.import_archive(file)
        row = await engine.sessions.row(id)
        request = spawn_from_json(row.request)
        assert (request.record, request.tape, request.network, request.image) == (None, None, "door", None)
        assert (request.repo, request.model, row.repo) == ("/r x", "m", "/r x")
        assert (await engine.sessions.view(id)).port is None
        assert not await events(engine, id, "machine.booting", "port.opened")


@pytest.mark.parametrize(
    "begin",
    [
        {"live": False, "image": "/evil.toml"},
        {"live": False, "image": "host"},
        {"live": True, "image": "default"},
    ],
    ids=["a recipe", "the host's own files", "another session's memory"],
)
async def test_an_archive_cannot_choose_where_a_session_starts(
    yard: Yard, elsewhere: Yard, repo: Path, tmp_path: Path, whole: dict[str, bytes], begin: dict[str, object]
) -> None:
    """Otherwise the next `hv resume` would build that image or start that snapshot."""
    file = tmp_path / "it.tar.gz"
    if "archive" not in whole:
        async with yard.open() as engine:
            await exported(engine, repo, file)
        whole["archive"] = file.read_bytes()
    file.write_bytes(whole["archive"])
    forked = {"type": "session.forked", "parent": "other", "snapshot": "p1", **begin}
    paused = {"type": "session.paused"}
    with changed(file) as (data, more):
        journal(lambda lines: [*lines, *({"at": 1.0, "body": one} for one in (forked, paused))])(data, more)
    async with elsewhere.open() as engine:
        id = await engine.imports.import_archive(file)
        read = engine.sessions._r.event_log.read
        assert await read(lambda conn: lineage.pending_start(conn, id)) is None
        assert await read(lambda conn: StartPoint.of(conn, id)) == StartPoint()
        assert not await events(engine, id, "session.forked", "session.paused")
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_an_unreadable_archive_is_reported_in_one_line(yard: Yard, tmp_path: Path) -> None:
    async with yard.open() as engine:
        for content in (b"", b"no archive", gzip.compress(b"no tar"), gzip.compress(b"no tar" * 1000)[:40]):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(BadArchive, match="is not an exported session"):
                await engine.imports.import_archive(tmp_path / "x")
        with pytest.raises(BadInput, match="is not a file"):
            await engine.imports.import_archive(tmp_path)
        assert list(yard.paths.sessions.iterdir()) == []


async def test_a_shallow_repository_with_a_shallow_submodule_is_exported(
    yard: Yard, elsewhere: Yard, repo: Path, tmp_path: Path
) -> None:
    """Their histories end at the same commits after the import."""
    clone, file = _shallow(repo, tmp_path), tmp_path / "it.tar.gz"
    async with yard.open() as engine:
        id = await spawned(engine, clone)
        await run_turn(engine, id, "run cd lib; echo 3 > c.txt; git commit -qam three; cd ..; git commit -qam moved")
        await engine.sessions.stop(id)
        await engine.exports.export(id, file)
    async with elsewhere.open() as engine:
        assert await engine.imports.import_archive(file) == id
        origin = Workspace(elsewhere.paths.sessions / id).origin
        for copy in (origin, bare_copy(origin, *submodules(origin))):
            assert git(copy, "rev-parse", "--is-shallow-repository") == "true"
            assert git(copy, "rev-list", "--count", BASE) == "1"
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        await run_turn(engine, id, "run cd lib; echo 4 > c.txt; git commit -qam four; cd ..; git commit -qam again")
        await engine.sessions.stop(id)
        found = (await events(engine, id, "result.collected"))[-1].body
        assert isinstance(found, ResultCollected)
        assert found.commits == 2


def _shallow(repo: Path, tmp_path: Path) -> Path:
    """Return a clone in which each repository has one of two commits."""
    lib, clone = tmp_path / "lib", tmp_path / "clone"
    lib.mkdir()
    git(lib, "init", "-q", "-b", "main")
    for number in "12":
        (lib / "c.txt").write_text(f"{number}\n")
        git(lib, "add", ".")
        git(lib, "commit", "-q", "-m", number)
    allowed = ("-c", "protocol.file.allow=always")
    git(repo, *allowed, "submodule", "--quiet", "add", lib.as_uri(), "lib")
    git(repo, "commit", "-q", "-m", "second")
    words = ("clone", "-q", "--depth", "1", "--recurse-submodules", "--shallow-submodules", repo.as_uri(), str(clone))
    git(tmp_path, *allowed, *words)
    return clone


UNREADABLE = """
import os, sys, tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from hiveyard.engine.archive.exporting import _TreeWriter
os.setgid(65534)
os.setuid(65534)
place = Path(sys.argv[1])
(place / "tree" / "below").mkdir(parents=True)
(place / "tree" / "below" / "file").write_text("kept")
for name in ("tree/below/file", "tree/below", "tree"):
    (place / name).chmod(0o000)
with tarfile.open(place / "tar", "w") as tar:
    _TreeWriter(tar).tree(place, "tree")
with tarfile.open(place / "tar") as tar:
    assert [entry.mode for entry in tar] == [0, 0, 0]
    assert tar.extractfile(tar.getnames()[-1]).read() == b"kept"
"""


def test_files_without_read_permission_are_exported() -> None:
    with TemporaryDirectory() as place:
        done = nobody(UNREADABLE, place)
        assert done.returncode == 0, done.stderr
