#!/usr/bin/env python3
"""A provider for Hiveyard in one file, with nothing but Python and bubblewrap: machines made of namespaces.

It speaks the protocol of docs/external-provider.md. A machine is a directory and a process 1 that goes on when this
program ends. It shows how a provider is written, and is not for strangers' code: machines share the host's kernel and
its network, and have no limits.
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
# No directory of the host appears in a machine, and its network cannot be closed: as if it were elsewhere.
CAN = {"home": "/home/agent", "user": "agent", "session": "/session", "door_url": "", "remote": True}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENV = {"HOME": "/home/agent", "USER": "agent", "PATH": PATH, "LANG": "C.UTF-8"}
PROGRAMS = ("bwrap", "nsenter", "setpriv", "tar")


class Problem(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def say(id: int, type: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"id": id, "type": type, **fields}) + "\n")
    sys.stdout.flush()


def stat(pid: object) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


class Machine:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name

    def process(self) -> int | None:
        """Its process 1, if it lives; the time it started tells it from another one with that number."""
        try:
            pid, began = (self.directory / "pid").read_text().split()
            return int(pid) if stat(pid)[19] == began and Path(f"/proc/{pid}/cmdline").read_bytes() else None
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None

    def made(self) -> dict:
        try:
            return json.loads((self.directory / "machine.json").read_text())
        except FileNotFoundError:
            return {}

    def write(self, **changes: object) -> None:
        (self.directory / "new").write_text(json.dumps({**self.made(), **changes}))
        (self.directory / "new").rename(self.directory / "machine.json")

    def look(self) -> dict:
        if not self.directory.is_dir():
            raise Problem("machine.unknown", f"no machine {self.name}")
        made = self.made()
        status = "ready" if self.process() else "stopped" if made.get("stopped") else "error"
        reason = "its process 1 is gone, or its start was interrupted" if status == "error" else ""
        known = {key: made[key] for key in ("image", "created_at", "metadata") if key in made}
        return {"name": self.name, "status": status, "reason": reason, **known}

    async def end(self) -> None:
        if pid := self.process():
            os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.02)

    async def start(self, image: Path, asked: dict) -> None:
        for shared in ("home", "session"):
            (self.directory / shared).mkdir(parents=True)
            if ROOT:
                os.chown(self.directory / shared, 1000, 1000)
        self.write(image=image.name, metadata=asked["metadata"], env=asked["image"]["env"], created_at=time.time())
        info, child = os.pipe()
        argv = [*self.command_line(image), "--info-fd", str(child), "--"]
        argv += ["bash", "-c", "echo ready; exec sleep infinity >/dev/null 2>&1"]
        with (self.directory / "log").open("wb") as log, os.fdopen(info) as answer:
            outputs = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            outer = subprocess.Popen(argv, pass_fds=[child], env=ENV, start_new_session=True, **outputs)
            os.close(child)
            # Not awaited: from its start until its number is written down nobody may cancel us.
            if pid := json.loads(answer.read() or "{}").get("child-pid"):
                (self.directory / "pid").write_text(f"{pid} {stat(pid)[19]}")
        while (said := (self.directory / "log").read_text(errors="replace")) != "ready\n":
            if outer.poll() is not None:
                raise Problem("machine.boot_failed", f"machine {self.name} did not start: {said[-300:]}")
            await asyncio.sleep(0.01)

    def command_line(self, image: Path) -> list[str]:
        argv = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", self.name]
        argv += [] if ROOT else ["--unshare-user", "--uid", "1000", "--gid", "1000"]
        argv += ["--ro-bind", str(image), "/", "--proc", "/proc"]
        for path in ("/dev", "/home", "/run"):
            argv += ["--tmpfs", path]
        for device in ("null", "zero", "full", "random", "urandom", "tty"):
            argv += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        for path in ("/tmp", "/var/tmp", "/dev/shm"):
            argv += ["--perms", "1777", "--size", str(256 << 20), "--tmpfs", path]
        for shared, where in (("home", "/home/agent"), ("session", "/session")):
            argv += ["--bind", str(self.directory / shared), where]
        return [*argv, "--symlink", "/proc/self/fd", "/dev/fd", "--remount-ro", "/home", "--remount-ro", "/dev"]


class Execution:
    """One program in a machine. Nothing is read that the other side gave no credit for."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.credit = {"stdout": WINDOW, "stderr": WINDOW}
        self.more = asyncio.Event()

    async def run(self, machine: Machine, argv: list[str]) -> None:
        pid = machine.process()
        if pid is None:
            raise Problem("machine.lost", f"machine {machine.name} does not run")
        who = ["--setuid", "1000", "--setgid", "1000"] if ROOT else ["--user", "--preserve-credentials"]
        words = ["setpriv", "--no-new-privs", "nsenter", "--target", str(pid), "--mount", "--pid", "--uts", "--ipc"]
        # What the image sets is for the machine, and not for the programs of the host that lead there.
        own = [f"{name}={value}" for name, value in machine.made()["env"].items()]
        child, ours = await self.spawn([*words, *who, "--", "env", "--", *own, *argv], ENV)
        say(self.id, "started")
        works = (self.feed(ours[0]), self.pump("stdout", ours[1]), self.pump("stderr", ours[2]))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.sleep(0)  # so that each has its pipe, and closes it
            status = await child.wait()
            # What looks like a failure may be the end of the machine under the program.
            if status != 0 and machine.process() != pid:
                raise Problem("machine.lost", f"machine {machine.name} died")
            say(self.id, "exit", status=128 - status if status < 0 else status)
            await asyncio.Event().wait()  # until it is closed
        finally:
            for task in tasks:
                task.cancel()
            if child.returncode is None:
                child.kill()

    async def spawn(self, words: list, env: dict) -> tuple[asyncio.subprocess.Process, list[int]]:
        """With pipes of our own, because asyncio's hold up `wait` until the program's children have closed them."""
        (stdin, to), (out, stdout), (err, stderr) = os.pipe(), os.pipe(), os.pipe()
        pipes = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        try:
            child = await asyncio.create_subprocess_exec(*words, **pipes, env=env, cwd="/", start_new_session=True)
        except BaseException:
            for fd in (to, out, err):
                os.close(fd)
            raise
        finally:
            for fd in pipes.values():
                os.close(fd)
        for fd in (to, out, err):
            os.set_blocking(fd, False)
        return child, [to, out, err]

    async def feed(self, fd: int) -> None:
        loop, wanted = asyncio.get_running_loop(), True
        try:
            while (data := await self.input.get()) is not None:
                left = data
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
        try:
            while True:
                while self.credit[stream] <= 0:
                    self.more.clear()
                    await self.more.wait()
                await usable(fd, loop.add_reader, loop.remove_reader)
                data = os.read(fd, min(PIECE, self.credit[stream]))
                if not data:
                    return say(self.id, "end", stream=stream)
                self.credit[stream] -= len(data)
                say(self.id, "output", stream=stream, data=base64.b64encode(data).decode())
        finally:
            os.close(fd)


async def usable(fd: int, add, remove) -> None:
    ready = asyncio.get_running_loop().create_future()
    add(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        remove(fd)


class Provider:
    def __init__(self) -> None:
        self.requests: dict[int, asyncio.Task] = {}
        self.executions: dict[int, Execution] = {}
        self.unpacking = asyncio.Lock()

    def take(self, line: dict) -> None:
        id, execution = line["id"], self.executions.get(line["id"])
        match line["type"]:
            case "cancel" | "close" if id in self.requests:
                # Not at once: what is cancelled before it began would answer nothing.
                asyncio.get_running_loop().call_soon(self.requests[id].cancel)
            case "stdin" | "stdin_end" if execution:
                execution.input.put_nowait(base64.b64decode(line["data"]) if "data" in line else None)
            case "credit" if execution:
                execution.credit[line["stream"]] += line["bytes"]
                execution.more.set()
            case "cancel" | "close" | "stdin" | "stdin_end" | "credit":
                pass  # about what is over
            case type:
                if type == "exec":
                    self.executions[id] = Execution(id)
                self.requests[id] = asyncio.create_task(self.answer(id, type, line))

    async def answer(self, id: int, type: str, line: dict) -> None:
        try:
            if type == "exec":
                await self.executions[id].run(self.machine(line["machine"]), list(map(base64.b64decode, line["argv"])))
            elif verb := getattr(self, f"do_{type}", None):
                say(id, "result", value=await verb(line))
            else:
                raise Problem("provider.refused", f"there is no {type}")
        except asyncio.CancelledError:
            say(id, "error", code="cancelled", message="it was cancelled")
        except Problem as problem:
            say(id, "error", code=problem.code, message=str(problem))
        except Exception as error:
            say(id, "error", code="provider", message=f"{type}: {error!r}")
        finally:
            self.requests.pop(id, None)
            self.executions.pop(id, None)

    def machine(self, name: str) -> Machine:
        return Machine(self.machines / name)

    async def do_hello(self, asked: dict) -> dict:
        self.machines, self.images = Path(asked["state"], "machines"), Path(asked["state"], "images")
        for directory in (self.machines, self.images):
            directory.mkdir(parents=True, exist_ok=True)
        return {"protocol": 1, "tier": "namespace", "capabilities": CAN}

    async def do_ping(self, asked: dict) -> None:
        """That it is answered is all."""

    async def do_readiness(self, asked: dict) -> dict:
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        fix = "sudo apt-get install bubblewrap util-linux tar" if missing else ""
        return {"ok": not missing, "detail": f"not installed: {missing}" if missing else "bubblewrap", "fix": fix}

    async def do_prepare(self, asked: dict) -> None:
        target, rootfs = self.images / asked["image"]["id"], asked["image"]["rootfs"]
        async with self.unpacking:
            if target.is_dir():
                return
            fresh = target.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            for point in ("proc", "dev", "home", "run", "tmp", "var/tmp", "session"):
                (fresh / point).mkdir(parents=True, exist_ok=True)
            argv = ["tar", "-C", str(fresh), "--numeric-owner", "--exclude=./dev/*", "-xpf", rootfs]
            tar = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
            complaint = (await tar.communicate())[1].decode(errors="replace")
            if tar.returncode != 0:
                raise Problem("provider", f"cannot unpack {rootfs}: {complaint[-300:]}")
            fresh.chmod(0o755)
            fresh.rename(target)

    async def do_release_image(self, asked: dict) -> None:
        shutil.rmtree(self.images / asked["image"], ignore_errors=True)

    async def do_boot(self, asked: dict) -> dict:
        image, machine = self.images / asked["image"]["id"], self.machine(asked["name"])
        if not image.is_dir():
            raise Problem("image.unknown", f"the image {image.name} was not prepared")
        await self.do_terminate(asked)
        try:
            await machine.start(image, asked)
        except BaseException:
            await self.do_terminate(asked)
            raise
        return machine.look()

    async def do_get(self, asked: dict) -> dict:
        return self.machine(asked["name"]).look()

    async def do_list(self, asked: dict) -> list[dict]:
        return [self.machine(name).look() for name in await self.do_names(asked)]

    async def do_names(self, asked: dict) -> list[str]:
        return sorted(entry.name for entry in self.machines.iterdir())

    async def do_stop(self, asked: dict) -> None:
        machine = self.machine(asked["name"])
        machine.look()
        await machine.end()
        machine.write(stopped=True)

    async def do_terminate(self, asked: dict) -> None:
        machine = self.machine(asked["name"])
        await machine.end()
        shutil.rmtree(machine.directory, ignore_errors=True)


async def main() -> None:
    lines, provider = asyncio.StreamReader(limit=2 << 20), Provider()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        provider.take(json.loads(line))
    os._exit(0)  # machines stay


if __name__ == "__main__":
    asyncio.run(main())
