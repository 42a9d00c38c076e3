#!/usr/bin/env python3
"""A provider for Hiveyard in one file, with nothing but Python and bubblewrap: machines made of namespaces.

It speaks the protocol of docs/external-provider.md on its stdin and stdout. A machine is a directory below the state
directory that the hello names, and a process 1 that goes on when this program ends. It shows how a provider is
written, and is not for strangers' code: machines share the host's kernel and its network, and have no limits.
"""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

WINDOW, PIECE = 256 << 10, 48 << 10
ROOT = os.geteuid() == 0
HELLO = {
    "protocol": 1,
    "tier": "namespace",
    # No directory of the host appears in a machine, and its network cannot be closed: as if it were elsewhere.
    "capabilities": {"home": "/home/agent", "user": "agent", "session": "/session", "door_url": "", "remote": True},
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENV = {"HOME": "/home/agent", "USER": "agent", "PATH": PATH, "LANG": "C.UTF-8"}
PROGRAMS = ("bwrap", "nsenter", "setpriv", "tar")
state = Path()
unpacking = asyncio.Lock()
booting: set[str] = set()
requests: dict[int, asyncio.Task] = {}
executions: dict[int, "Execution"] = {}


class Problem(Exception):
    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.hint = code, hint


def say(id: int, type: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"id": id, "type": type, **fields}) + "\n")
    sys.stdout.flush()


# --- machines --------------------------------------------------------------------------------------------------------


def place(name: str) -> Path:
    found = state / "machines" / name
    if not found.is_dir():
        raise Problem("machine.unknown", f"no machine {name}")
    return found


def process(directory: Path) -> int | None:
    """Process 1 of a machine, if it lives; its start time tells it from another one with that number."""
    try:
        pid, began = (directory / "pid").read_text().split()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return int(pid) if fields[19] == began and Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None


def look(directory: Path) -> dict[str, object]:
    try:
        made = json.loads((directory / "machine.json").read_text())
    except FileNotFoundError:
        return {"name": directory.name, "status": "error", "reason": "its start was interrupted"}
    stopped = made.pop("stopped", False)
    made["status"] = "ready" if process(directory) else "stopped" if stopped else "error"
    made["reason"] = "its process 1 is gone" if made["status"] == "error" else ""
    if directory.name in booting:
        made["status"] = "booting"
    return made


def write(directory: Path, made: dict[str, object]) -> None:
    (directory / "new").write_text(json.dumps(made))
    (directory / "new").rename(directory / "machine.json")


async def end(directory: Path) -> None:
    pid = process(directory)
    if pid:
        os.kill(pid, signal.SIGKILL)
    while pid and Path(f"/proc/{pid}").exists():
        await asyncio.sleep(0.02)


async def boot(asked: dict) -> dict:
    image = state / "images" / asked["image"]["id"]
    if not image.is_dir():
        raise Problem("image.unknown", f"the image {asked['image']['id']} was not prepared")
    await terminate(asked)
    directory = state / "machines" / asked["name"]
    booting.add(asked["name"])
    try:
        for shared in ("home", "session"):
            (directory / shared).mkdir(parents=True)
            if ROOT:
                os.chown(directory / shared, 1000, 1000)
        made = {"name": asked["name"], "image": asked["image"]["id"], "metadata": asked["metadata"]}
        write(directory, {**made, "created_at": time.time()})
        await start(directory, image)
    except BaseException:
        await terminate(asked)
        raise
    finally:
        booting.discard(asked["name"])
    return look(directory)


async def start(directory: Path, image: Path) -> None:
    argv = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", directory.name]
    argv += [] if ROOT else ["--unshare-user", "--uid", "1000", "--gid", "1000"]
    argv += ["--ro-bind", str(image), "/", "--proc", "/proc", "--tmpfs", "/dev", "--tmpfs", "/home", "--tmpfs", "/run"]
    for device in ("null", "zero", "full", "random", "urandom", "tty"):
        argv += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for path in ("/tmp", "/var/tmp", "/dev/shm"):
        argv += ["--perms", "1777", "--size", str(256 << 20), "--tmpfs", path]
    for shared, where in (("home", "/home/agent"), ("session", "/session")):
        argv += ["--bind", str(directory / shared), where]
    argv += ["--symlink", "/proc/self/fd", "/dev/fd", "--remount-ro", "/home", "--remount-ro", "/dev"]
    info, child = os.pipe()
    argv += ["--info-fd", str(child), "--", "bash", "-c", "echo ready; exec sleep infinity >/dev/null 2>&1"]
    with (directory / "log").open("wb") as log:
        outer = subprocess.Popen(
            argv, pass_fds=[child], env=ENV, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    os.close(child)
    with os.fdopen(info) as answer:
        pid = json.loads(answer.read() or "{}").get("child-pid")
    if pid:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
        (directory / "pid").write_text(f"{pid} {began}")
    while (said := (directory / "log").read_text(errors="replace")) != "ready\n":
        if outer.poll() is not None:
            raise Problem("machine.boot_failed", f"machine {directory.name} did not start: {said[-300:]}")
        await asyncio.sleep(0.01)


async def prepare(asked: dict) -> None:
    target = state / "images" / asked["image"]["id"]
    async with unpacking:
        if target.is_dir():
            return
        fresh = target.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        argv = ["tar", "-C", str(fresh), "--numeric-owner", "--exclude=./dev/*", "-xpf", asked["image"]["rootfs"]]
        tar = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
        complaint = (await tar.communicate())[1].decode(errors="replace")
        if tar.returncode != 0:
            raise Problem("provider", f"cannot unpack {asked['image']['rootfs']}: {complaint[-300:]}")
        for point in ("proc", "dev", "home", "run", "tmp", "var/tmp", "session"):
            (fresh / point).mkdir(parents=True, exist_ok=True)
        fresh.chmod(0o755)
        fresh.rename(target)


async def release_image(asked: dict) -> None:
    shutil.rmtree(state / "images" / asked["image"], ignore_errors=True)


async def readiness(_: dict) -> dict:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    fix = "sudo apt-get install bubblewrap util-linux tar" if missing else ""
    return {"ok": not missing, "detail": f"not installed: {missing}" if missing else "bubblewrap", "fix": fix}


async def stop(asked: dict) -> None:
    directory = place(asked["name"])
    await end(directory)
    if (directory / "machine.json").exists():
        write(directory, {**json.loads((directory / "machine.json").read_text()), "stopped": True})


async def terminate(asked: dict) -> None:
    directory = state / "machines" / asked["name"]
    await end(directory)
    shutil.rmtree(directory, ignore_errors=True)


async def names(_: dict) -> list[str]:
    return sorted(entry.name for entry in (state / "machines").iterdir())


async def listing(_: dict) -> list[dict]:
    return [look(entry) for entry in sorted((state / "machines").iterdir())]


async def get(asked: dict) -> dict:
    return look(place(asked["name"]))


async def ping(_: dict) -> None:
    return None


async def hello(asked: dict) -> dict:
    global state
    state = Path(asked["state"])
    for kind in ("images", "machines"):
        (state / kind).mkdir(parents=True, exist_ok=True)
    return HELLO


# --- programs in machines --------------------------------------------------------------------------------------------


async def usable(fd: int, add, remove) -> None:
    ready = asyncio.get_running_loop().create_future()
    add(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        remove(fd)


class Execution:
    """One program. Nothing is read that the other side gave no credit for."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.credit = {"stdout": WINDOW, "stderr": WINDOW}
        self.more = asyncio.Event()

    async def run(self, asked: dict) -> None:
        directory = place(asked["machine"])
        pid = process(directory)
        if pid is None:
            raise Problem("machine.lost", f"machine {directory.name} does not run")
        who = ["--setuid", "1000", "--setgid", "1000"] if ROOT else ["--user", "--preserve-credentials"]
        argv = [
            "setpriv",
            "--no-new-privs",
            "nsenter",
            "--target",
            str(pid),
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            *who,
        ]
        pipes = [os.pipe() for _ in range(3)]
        theirs, ours = [pipes[0][0], pipes[1][1], pipes[2][1]], [pipes[0][1], pipes[1][0], pipes[2][0]]
        words = [*argv, "--", *map(base64.b64decode, asked["argv"])]
        try:
            child = await asyncio.create_subprocess_exec(
                *words, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], env=ENV, cwd="/", start_new_session=True
            )
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        say(self.id, "started")
        tasks = [asyncio.create_task(self.feed(ours[0]))]
        tasks += [asyncio.create_task(self.pump(*each)) for each in zip(("stdout", "stderr"), ours[1:], strict=True)]
        try:
            status = await child.wait()
            # What looks like a failure may be the end of the machine under the program.
            if status != 0 and process(directory) != pid:
                raise Problem("machine.lost", f"machine {directory.name} died")
            say(self.id, "exit", status=128 - status if status < 0 else status)
            await asyncio.gather(*tasks[1:])
            await asyncio.Event().wait()  # until it is closed
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if child.returncode is None:
                child.kill()

    async def feed(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        wanted = True
        try:
            while (data := await self.input.get()) is not None:
                left = memoryview(data)
                while left and wanted:
                    try:
                        left = left[os.write(fd, left) :]
                    except BlockingIOError:
                        await usable(fd, loop.add_writer, loop.remove_writer)
                    except BrokenPipeError:
                        wanted = False
                say(self.id, "credit", bytes=len(data))
        finally:
            os.close(fd)

    async def pump(self, stream: str, fd: int) -> None:
        loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        try:
            while True:
                while self.credit[stream] <= 0:
                    self.more.clear()
                    await self.more.wait()
                await usable(fd, loop.add_reader, loop.remove_reader)
                data = os.read(fd, min(PIECE, self.credit[stream]))
                if not data:
                    break
                self.credit[stream] -= len(data)
                say(self.id, "output", stream=stream, data=base64.b64encode(data).decode())
            say(self.id, "end", stream=stream)
        finally:
            os.close(fd)


# --- lines -----------------------------------------------------------------------------------------------------------

VERBS = {
    verb.__name__: verb for verb in (hello, ping, readiness, prepare, release_image, boot, get, names, stop, terminate)
}
VERBS["list"] = listing


async def answer(line: dict) -> None:
    id = line["id"]
    try:
        if line["type"] == "exec":
            await executions[id].run(line)
        else:
            say(id, "result", value=await VERBS[line["type"]](line))
    except asyncio.CancelledError:
        say(id, "error", code="cancelled", message="it was cancelled")
    except Problem as problem:
        say(id, "error", code=problem.code, message=str(problem), hint=problem.hint)
    except Exception as error:
        say(id, "error", code="provider", message=f"{type(error).__name__}: {error}")
    finally:
        requests.pop(id, None)
        executions.pop(id, None)


def take(line: dict) -> None:
    id, type = line["id"], line["type"]
    execution = executions.get(id)
    if type in ("cancel", "close"):
        if id in requests:
            requests[id].cancel()
    elif type in ("stdin", "stdin_end", "credit"):
        if execution and type == "credit":
            execution.credit[line["stream"]] += line["bytes"]
            execution.more.set()
        elif execution:
            execution.input.put_nowait(base64.b64decode(line["data"]) if type == "stdin" else None)
    elif type == "exec" or type in VERBS:
        if type == "exec":
            executions[id] = Execution(id)
        requests[id] = asyncio.create_task(answer(line))
    else:
        say(id, "error", code="provider.refused", message=f"there is no {type}")


async def main() -> None:
    lines = asyncio.StreamReader(limit=2 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        take(json.loads(line))
    os._exit(0)  # machines stay


if __name__ == "__main__":
    asyncio.run(main())
