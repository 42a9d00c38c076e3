"""Commands and files through the API into machines of every provider, with a real server and the real client."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread
import pytest
import uvicorn
from fastapi import FastAPI, Response

from hiveyard.api.channel import Channel
from hiveyard.api.client import ApiError
from hiveyard.api.duplex import Duplex
from hiveyard.api.server import bind
from hiveyard.cli.copy import from_guest, to_guest
from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput, DaemonUnreachable, GuestFileError, GuestFileNotFound, GuestPermissionDenied
from hiveyard.core.ports import Guest
from hiveyard.machines.shared.unpacking import unpack
from tests.contract.conftest import Place

pytestmark = pytest.mark.anyio
PATIENCE = 60.0
EXECUTE = (
    "import sys; from pathlib import Path\n"
    "from hiveyard.api.duplex import Duplex; from hiveyard.cli.access import execute\n"
    "with Duplex(Path(sys.argv[1]), sys.argv[2]) as duplex: sys.exit(execute(duplex))"
)


class Daemon:
    """A server whose only route runs commands in the shared machine."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def open(self, argv: Sequence[str]) -> AbstractContextManager[Duplex]:
        return Duplex(self.socket, self.path(argv))

    def path(self, argv: Sequence[str]) -> str:
        return "/exec?argv=" + quote(json.dumps(list(argv)))


@asynccontextmanager
async def daemon_of(place: Place, scratch: Path) -> AsyncIterator[Daemon]:
    app = FastAPI()

    @app.post("/exec")
    async def run(argv: str) -> Response:
        return Channel(place.guest(), Command(argv=tuple(json.loads(argv))))

    with bind(scratch / "api.sock") as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        async with anyio.create_task_group() as group:

            async def serve() -> None:
                await server.serve(sockets=[listener])

            group.start_soon(serve)
            yield Daemon(scratch / "api.sock")
            server.should_exit = True


@pytest.fixture
async def daemon(shared: Place, tmp_path: Path) -> AsyncIterator[Daemon]:
    async with daemon_of(shared, tmp_path) as daemon:
        yield daemon


async def execute(daemon: Daemon, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-c", EXECUTE, str(daemon.socket), daemon.path(argv)]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(words, input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    )


# --- commands --------------------------------------------------------------------------------------------------------


async def test_stdin_stdout_stderr_and_exit_code_are_forwarded(daemon: Daemon) -> None:
    done = await execute(daemon, "bash", "-c", "cat; printf err >&2; exit 5", stdin=b"in\0put")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"in\0put", b"err")


async def test_large_data_flows_in_both_directions_at_once(daemon: Daemon) -> None:
    data = os.urandom(8 << 20)
    done = await execute(daemon, "cat", stdin=data)
    assert (done.returncode, done.stdout == data) == (0, True)


async def test_a_command_that_does_not_read_its_stdin_ends(daemon: Daemon) -> None:
    done = await execute(daemon, "true", stdin=os.urandom(4 << 20))
    assert done.returncode == 0


async def test_hiveyard_errors_keep_their_code_and_message(daemon: Daemon) -> None:
    def ask() -> None:
        with daemon.open(("no-such-program",)) as duplex:
            duplex.feed(())
            while True:
                duplex.next()

    with pytest.raises(ApiError, match="no-such-program") as caught:
        await anyio.to_thread.run_sync(ask)
    assert caught.value.code == "guest.cannot_execute"


async def test_closing_the_connection_kills_the_command(daemon: Daemon, guest: Guest) -> None:
    def leave() -> int:
        with daemon.open(("bash", "-c", "echo $$; exec sleep 1000")) as duplex:
            return int(duplex.next()[1])

    pid = await anyio.to_thread.run_sync(leave)
    with anyio.fail_after(PATIENCE):
        while await guest.exists(f"/proc/{pid}"):  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_a_missing_daemon_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable):
        Duplex(tmp_path / "absent.sock", "/exec")


# --- files -----------------------------------------------------------------------------------------------------------


async def take(daemon: Daemon, path: str, target: Path) -> None:
    await anyio.to_thread.run_sync(lambda: from_guest(daemon.open, path, target))


async def put(daemon: Daemon, source: Path, path: str) -> None:
    await anyio.to_thread.run_sync(lambda: to_guest(daemon.open, source, path))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "a tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "deep/er/file").write_bytes(os.urandom(100_000))
    (tree / "run me").write_text("#!/bin/sh\n")
    (tree / "run me").chmod(0o755)
    (tree / "ü\n-rf").write_text("odd")
    (tree / "link").symlink_to("deep/er/file")
    (tree / "away").symlink_to("/etc/passwd")
    (tree / "broken").symlink_to("nowhere")
    (tree / "empty").mkdir()
    (tree / "closed").mkdir()
    (tree / "closed/inside").write_text("x")
    (tree / "closed").chmod(0o555)
    return tree


def told(root: Path) -> dict[str, object]:
    """Return the kind, mode and content of every entry of a tree."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "directory"
        found[str(path.relative_to(root))] = (what, 0 if path.is_symlink() else path.stat().st_mode & 0o777)
    return found


async def test_a_directory_copied_in_and_out_is_unchanged(daemon: Daemon, tree: Path, folder: str) -> None:
    await put(daemon, tree, f"{folder}/new")
    await take(daemon, f"{folder}/new", tree.parent / "back")
    assert told(tree.parent / "back") == told(tree)
    # An existing directory is copied into.
    await put(daemon, tree, folder)
    (tree.parent / "here").mkdir()
    await take(daemon, f"{folder}/a tree/", tree.parent / "here")
    assert told(tree.parent / "here/a tree") == told(tree)


async def test_a_file_copied_in_and_out_is_unchanged(daemon: Daemon, guest: Guest, tree: Path, folder: str) -> None:
    await put(daemon, tree / "run me", f"{folder}/it")
    await put(daemon, tree / "deep/er/file", f"{folder}/it")
    assert await guest.read(f"{folder}/it") == (tree / "deep/er/file").read_bytes()
    await take(daemon, f"{folder}/it", tree.parent / "copy")
    assert (tree.parent / "copy").read_bytes() == (tree / "deep/er/file").read_bytes()
    await take(daemon, f"{folder}/it", tree)
    assert (tree / "it").exists()
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b"it\n"


async def test_a_large_file_is_streamed(
    daemon: Daemon, guest: Guest, tmp_path: Path, folder: str, request: pytest.FixtureRequest
) -> None:
    mebibytes = 4 if "qemu" in request.node.callspec.id else 48  # an emulated VM writes slowly
    (tmp_path / "big").write_bytes(os.urandom(1 << 20) * mebibytes)
    sizes: list[int] = []
    await anyio.to_thread.run_sync(lambda: to_guest(daemon.open, tmp_path / "big", f"{folder}/big", sizes.append))
    await anyio.to_thread.run_sync(lambda: from_guest(daemon.open, f"{folder}/big", tmp_path / "back", sizes.append))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    assert sum(sizes) >= 2 * (mebibytes << 20) and max(sizes) <= 1 << 20


async def test_a_missing_path_is_reported(daemon: Daemon, tmp_path: Path, folder: str) -> None:
    with pytest.raises(GuestFileNotFound, match="/no/such"):
        await take(daemon, "/no/such", tmp_path)
    with pytest.raises(GuestFileNotFound):
        await put(daemon, Path(__file__), f"{folder}/no/such/place")
    with pytest.raises(GuestFileNotFound):
        await put(daemon, Path(__file__), f"{folder}/none/")
    with pytest.raises(BadInput, match="does not exist"):
        await put(daemon, tmp_path / "absent", folder)
    with pytest.raises(BadInput, match=r"the directory .* does not exist"):
        await take(daemon, folder, tmp_path / "none/such")
    with pytest.raises((GuestPermissionDenied, GuestFileError)):
        await put(daemon, Path(__file__), "/usr/bin/new")


# --- hostile archives ------------------------------------------------------------------------------------------------


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    out.seek(0)
    return out


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, to, mode
    return member


ROOT = (entry("it", tarfile.DIRTYPE, mode=0o755), b"")
HOSTILE = {
    "climbs": [ROOT, (entry("it/../../evil"), b"x")],
    "absolute": [ROOT, (entry("/tmp/evil"), b"x")],
    "elsewhere": [ROOT, (entry("other"), b"x")],
    "through a link": [ROOT, (entry("it/l", tarfile.SYMTYPE, ".."), b""), (entry("it/l/evil"), b"x")],
    "hard link out": [ROOT, (entry("it/h", tarfile.LNKTYPE, "../secret"), b"")],
    "hard link to a link": [
        ROOT,
        (entry("it/l", tarfile.SYMTYPE, "../secret"), b""),
        (entry("it/h", tarfile.LNKTYPE, "it/l"), b""),
    ],
    "file becomes directory": [(entry("it"), b"x"), (entry("it/evil"), b"x")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_writes_only_into_the_target(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    with pytest.raises((BadInput, OSError)):
        unpack(archive(*members), tmp_path / "in/target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "secret"]
    assert {path.name for path in (tmp_path / "in").iterdir()} <= {"target"}
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_existing_links_in_the_target_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "target").mkdir()
    (tmp_path / "target/file").symlink_to(tmp_path / "secret")
    (tmp_path / "target/dir").symlink_to(tmp_path)
    unpack(archive(ROOT, (entry("it/file"), b"new")), tmp_path / "target")
    assert (tmp_path / "secret").read_text() == "secret" and (tmp_path / "target/file").read_bytes() == b"new"
    with pytest.raises(OSError, match="dir"):
        unpack(archive(ROOT, (entry("it/dir/evil"), b"x")), tmp_path / "target")


def test_devices_and_special_mode_bits_are_dropped(tmp_path: Path) -> None:
    members = [ROOT, (entry("it/null", tarfile.CHRTYPE), b""), (entry("it/pipe", tarfile.FIFOTYPE), b"")]
    done = unpack(archive(*members, (entry("it/suid", mode=0o6755), b"x")), tmp_path / "target")
    assert done.left_out == 2 and [path.name for path in (tmp_path / "target").iterdir()] == ["suid"]
    assert (tmp_path / "target/suid").stat().st_mode & 0o7777 == 0o755


def headed(*headers: tuple[bytes, bytes]) -> bytes:
    """Return an archive of a directory `it` and a file whose header follows extra headers (type, content)."""
    whole = archive(ROOT).getvalue()[:512]
    for kind, content in headers:
        header = entry("it/x", kind)
        header.size = len(content)
        whole += header.tobuf() + content + bytes(-len(content) % 512)
    return whole + archive((entry("it/file"), b"x")).getvalue()


def record(key: str, value: str) -> bytes:
    """Return one record of a PAX header."""
    text = f" {key}={value}\n"
    size = len(text) + len(str(len(text) + 4))
    return f"{size}{text}".encode()


@pytest.mark.parametrize("when", ["1e300", "-1e300", "nan", "inf", "1e12"])
def test_an_impossible_file_time_is_ignored(tmp_path: Path, when: str) -> None:
    unpack(io.BytesIO(headed((tarfile.XHDTYPE, record("mtime", when)))), tmp_path / "target")
    assert (tmp_path / "target/file").read_bytes() == b"x"
    assert (tmp_path / "target/file").stat().st_mtime == 0


def continued(header: bytes) -> bytes:
    """Change the header of a sparse file so that its map continues in the next block."""
    parts = bytearray(header)
    parts[386:512] = bytes(126)
    parts[482] = 1
    parts[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(parts))[0]  # type: ignore[attr-defined]
    return bytes(parts)


LONG = 4 << 20
MUCH = {
    "a header": headed((tarfile.XHDTYPE, record("comment", "x" * LONG))),
    "a header for all": headed((tarfile.XGLTYPE, record("comment", "x" * LONG))),
    "a name": headed((tarfile.GNUTYPE_LONGNAME, b"x" * LONG)),
    "a map of holes": headed(
        (
            tarfile.XHDTYPE,
            b"".join(record(f"GNU.sparse.{key}", value) for key, value in (("major", "1"), ("minor", "0"))),
        )
    )[:-10240]
    + entry("it/file", tarfile.REGTYPE).tobuf()
    + b"99999999\n"
    + b"1\n" * LONG,
    "unknown content": headed((b"Z", b"x" * LONG)),
}


@pytest.mark.parametrize("data", MUCH.values(), ids=MUCH.keys())
def test_a_huge_entry_header_is_not_held_in_memory(tmp_path: Path, data: bytes) -> None:
    stream = io.BytesIO(data)
    with pytest.raises(BadInput, match="longer than"):
        unpack(stream, tmp_path / "target")
    assert stream.tell() < 1 << 20


ODD = {
    "headers of headers": headed(*[(tarfile.XHDTYPE, b"")] * 400),
    "too many for all": headed(*[(tarfile.XGLTYPE, record(f"k{number}", "v")) for number in range(100)]),
    "a map of nothing": headed((tarfile.XHDTYPE, record("GNU.sparse.size", "many"))),
    "a map with a hole": headed((tarfile.XHDTYPE, record("GNU.sparse.map", "1,x"))),
    "a map that ends": archive(ROOT).getvalue()[:512] + continued(entry("it/file", tarfile.GNUTYPE_SPARSE).tobuf()),
    "a size below nothing": headed((tarfile.XHDTYPE, record("size", "-5000"))),
    "a name with nothing in it": headed((tarfile.XHDTYPE, record("path", "it/\0"))),
    "a link to nothing": headed((tarfile.XHDTYPE, record("linkpath", "a\0b")))[:-10240]
    + entry("it/link", tarfile.SYMTYPE, "x").tobuf()
    + bytes(1024),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
def test_a_malformed_archive_is_reported_in_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInput) as said:
        unpack(io.BytesIO(data), tmp_path / "target")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\0" * 10240])
def test_a_file_that_is_not_an_archive_is_reported(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInput):
        unpack(io.BytesIO(data), tmp_path / "target")


def test_a_truncated_archive_is_reported(tmp_path: Path) -> None:
    data = archive((entry("it"), b"x" * 100_000)).getvalue()
    with pytest.raises(BadInput):
        unpack(io.BytesIO(data[:50_000]), tmp_path / "target")
