"""A small Morph Cloud: the service's API with state, and instances in which commands really run.

Its answers are held against the service's own description by Prism, see test_prism. What it cannot do: a snapshot or a
branch keeps the files and not the memory.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import asyncssh
import uvicorn
from anyio.abc import Process
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.morph_machine import Vm, base_tree

Json = dict[str, Any]
SPEC = {"vcpus": 1, "memory": 512, "disk_size": 1024}


@dataclass
class Snapshot:
    id: str
    tree: Path
    image: str
    metadata: dict[str, str]
    created: int = field(default_factory=lambda: int(time.time()))
    status: str = "ready"

    def view(self) -> Json:
        refs = {"image_id": self.image}
        return {
            "id": self.id, "object": "snapshot", "created": self.created, "status": self.status, "spec": SPEC,
            "refs": refs, "metadata": self.metadata,
        }  # fmt: skip


@dataclass
class Instance:
    """`looks` is how often it still says `pending` before it is ready."""

    id: str
    vm: Vm
    image: str
    snapshot: str
    metadata: dict[str, str]
    looks: int
    created: int = field(default_factory=lambda: int(time.time()))
    status: str = "ready"
    ttl: Json = field(default_factory=lambda: {"ttl_seconds": None, "ttl_action": "stop"})
    services: list[Json] = field(default_factory=list)
    running: set[Process] = field(default_factory=set)
    key: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))

    def view(self) -> Json:
        status = self.status
        if not self.vm.alive:
            status = "error"
        elif self.looks > 0:
            self.looks -= 1
            status = "pending"
        return {
            "id": self.id, "object": "instance", "created": self.created, "status": status, "spec": SPEC,
            "refs": {"snapshot_id": self.snapshot, "image_id": self.image},
            "networking": {"internal_ip": "192.0.2.7", "http_services": self.services},
            "metadata": self.metadata, "ttl": self.ttl, "wake_on": {"wake_on_ssh": False, "wake_on_http": False},
        }  # fmt: skip


class Cloud:
    """`lost` holds `METHOD /path` beginnings whose next answer is lost after all was done; `asked` is what came.
    Instances that have ended are listed `lingers` times more, snapshots are pending for `developing` looks, and what is
    branched while it is `forgetful` has none of its labels."""

    def __init__(self, directory: Path, key: str, bases: tuple[str, ...]) -> None:
        self.key = key
        self.bases = bases
        self.instances: dict[str, Instance] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.lost: list[str] = []
        self.never_still = False
        self.lingers = 0
        self.developing = 0
        self.forgetful = False
        self._ghosts: list[list[Json]] = []
        self.asked: list[str] = []
        self.looks = 1
        self._directory = directory

    def app(self) -> Starlette:
        verbs: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/image", self._images),
            ("POST", "/image/{id}/boot", self._boot_image),
            ("GET", "/snapshot", self._list_snapshots),
            ("GET", "/snapshot/{id}", self._snapshot),
            ("DELETE", "/snapshot/{id}", self._drop),
            ("GET", "/instance", self._list_instances),
            ("POST", "/instance", self._start),
            ("GET", "/instance/{id}", self._instance),
            ("DELETE", "/instance/{id}", self._end),
            ("POST", "/instance/{id}/snapshot", self._take),
            ("POST", "/instance/{id}/branch", self._branch),
            ("POST", "/instance/{id}/pause", self._pause),
            ("POST", "/instance/{id}/resume", self._resume),
            ("POST", "/instance/{id}/metadata", self._label),
            ("POST", "/instance/{id}/ttl", self._ttl),
            ("POST", "/instance/{id}/http", self._expose),
            ("DELETE", "/instance/{id}/http/{name}", self._conceal),
            ("GET", "/instance/{id}/ssh/key", self._ssh_key),
            ("POST", "/instance/{id}/exec", self._execute),
            ("POST", "/instance/{id}/exec/sse", self._stream),
        ]
        return Starlette(routes=[Route(path, self._guarded(verb), methods=[method]) for method, path, verb in verbs])

    def machine(self, name: str) -> Instance:
        """The instance that its owner calls so."""
        return next(one for one in self.instances.values() if name in one.metadata.values())

    def close(self) -> None:
        for instance in self.instances.values():
            instance.vm.end()

    # --- the door of the service -----------------------------------------------------------------------------------

    def _guarded(self, verb: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            asked = f"{request.method} {request.url.path}"
            self.asked.append(asked)
            if request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"detail": "Invalid API key"}, 401)
            await self._expire()
            try:
                answer = await verb(request)
            except KeyError as error:
                return JSONResponse({"detail": f"not found: {error.args[0]}"}, 404)
            for lost in self.lost:
                if asked.startswith(lost):
                    self.lost.remove(lost)
                    return Response("<html>gateway time-out</html>", 504, media_type="text/html")
            return answer

        return guarded

    async def _expire(self) -> None:
        for instance in list(self.instances.values()):
            seconds = instance.ttl["ttl_seconds"]
            if seconds is not None and time.time() > instance.ttl["ttl_expire_at"]:
                instance.ttl = {"ttl_seconds": None, "ttl_action": "stop"} | {"was": instance.ttl["ttl_action"]}
                if instance.ttl.pop("was") == "pause":
                    await self._freeze(instance)
                else:
                    await self._remove(instance.id)

    # --- images and snapshots --------------------------------------------------------------------------------------

    async def _images(self, request: Request) -> Response:
        data = [{"id": id, "created": 1_700_000_000, "name": id, "disk_size": 1 << 30} for id in self.bases]
        return JSONResponse({"object": "list", "data": data})

    async def _boot_image(self, request: Request) -> Response:
        image = request.path_params["id"]
        if image not in self.bases:
            raise KeyError(image)
        tree = await anyio.to_thread.run_sync(base_tree, self._directory)
        return await self._started(tree, image, "snapshot_none", await request.json())

    async def _list_snapshots(self, request: Request) -> Response:
        return _listing(request, [one.view() for one in self.snapshots.values()])

    async def _snapshot(self, request: Request) -> Response:
        snapshot = self.snapshots[request.path_params["id"]]
        self.developing -= 1
        snapshot.status = "pending" if self.developing > 0 else "ready"
        return JSONResponse(snapshot.view())

    async def _drop(self, request: Request) -> Response:
        gone = self.snapshots.pop(request.path_params["id"])
        await anyio.to_thread.run_sync(shutil.rmtree, gone.tree)
        return Response(status_code=204)

    async def _take(self, request: Request) -> Response:
        body = await _body(request)
        return JSONResponse((await self._kept(self._known(request), body.get("metadata") or {})).view())

    async def _kept(self, instance: Instance, metadata: dict[str, str]) -> Snapshot:
        id = f"snapshot_{secrets.token_hex(4)}"
        await anyio.to_thread.run_sync(_copy, instance.vm.tree, self._directory / id)
        status = "pending" if self.developing > 0 else "ready"
        made = self.snapshots[id] = Snapshot(id, self._directory / id, instance.image, metadata, status=status)
        return made

    # --- instances -------------------------------------------------------------------------------------------------

    async def _list_instances(self, request: Request) -> Response:
        ghosts = [views.pop() for views in self._ghosts if views]
        return _listing(request, [one.view() for one in self.instances.values()] + ghosts)

    async def _start(self, request: Request) -> Response:
        snapshot = self.snapshots[request.query_params["snapshot_id"]]
        return await self._started(snapshot.tree, snapshot.image, snapshot.id, await _body(request))

    async def _started(self, tree: Path, image: str, snapshot: str, body: Json) -> Response:
        return JSONResponse((await self._made(tree, image, snapshot, body)).view())

    async def _made(self, tree: Path, image: str, snapshot: str, body: Json) -> Instance:
        id = f"morphvm_{secrets.token_hex(4)}"
        await anyio.to_thread.run_sync(_copy, tree, self._directory / id)
        vm = await anyio.to_thread.run_sync(Vm, self._directory / id)
        made = Instance(id, vm, image, snapshot, body.get("metadata") or {}, self.looks)
        _set_ttl(made, body)
        self.instances[id] = made
        return made

    async def _instance(self, request: Request) -> Response:
        return JSONResponse(self._known(request).view())

    async def _end(self, request: Request) -> Response:
        await self._remove(self._known(request).id)
        return Response(status_code=204)

    async def _remove(self, id: str) -> None:
        gone = self.instances.pop(id)
        self._ghosts.append([gone.view()] * self.lingers)
        await anyio.to_thread.run_sync(gone.vm.end)
        await _break_off(gone)

    async def _branch(self, request: Request) -> Response:
        parent, body = self._known(request), await _body(request)
        snapshot = await self._kept(parent, body.get("snapshot_metadata") or {})
        given = body.get("instance_metadata") or {}
        count = int(request.query_params.get("count", "1"))
        each = given if isinstance(given, list) else [given] * count
        if self.forgetful:
            each = [{} for _ in each]
        children = [await self._made(snapshot.tree, parent.image, snapshot.id, {"metadata": one}) for one in each]
        return JSONResponse({"snapshot": snapshot.view(), "instances": [child.view() for child in children]})

    async def _pause(self, request: Request) -> Response:
        instance = self._known(request)
        if self.never_still:
            instance.status = "saving"
        else:
            await self._freeze(instance)
        return JSONResponse(instance.view())

    async def _freeze(self, instance: Instance) -> None:
        instance.status = "paused"
        instance.vm.signal(signal.SIGSTOP)
        await _break_off(instance)

    async def _resume(self, request: Request) -> Response:
        instance = self._known(request)
        instance.vm.signal(signal.SIGCONT)
        instance.status = "ready"
        return JSONResponse(instance.view())

    async def _label(self, request: Request) -> Response:
        instance = self._known(request)
        instance.metadata = await request.json()
        return JSONResponse(instance.view())

    async def _ttl(self, request: Request) -> Response:
        instance = self._known(request)
        _set_ttl(instance, await request.json())
        return JSONResponse(instance.view())

    async def _expose(self, request: Request) -> Response:
        instance, body = self._known(request), await request.json()
        instance.services = [one for one in instance.services if one["name"] != body["name"]]
        url = f"https://{body['name']}-{instance.id}.example"
        instance.services.append({**body, "url": url})
        return JSONResponse(instance.view())

    async def _conceal(self, request: Request) -> Response:
        instance = self._known(request)
        instance.services = [one for one in instance.services if one["name"] != request.path_params["name"]]
        return JSONResponse(instance.view())

    async def _ssh_key(self, request: Request) -> Response:
        key = self._known(request).key
        public, password = key.export_public_key("openssh").decode(), "Zq8TestSecret unlocks it"
        private = key.export_private_key("pkcs8-pem", passphrase=password).decode()
        named = {"private_key": private, "public_key": public, "password": password}
        return JSONResponse({"object": "instance_ssh_key", **named})

    def _known(self, request: Request) -> Instance:
        return self.instances[request.path_params["id"]]

    # --- commands --------------------------------------------------------------------------------------------------

    async def _execute(self, request: Request) -> Response:
        instance = self._known(request)
        if refused := _unable(instance):
            return refused
        said = {"stdout": bytearray(), "stderr": bytearray()}
        async with await _opened(instance, await request.json()) as process:
            async with anyio.create_task_group() as group:
                for name in said:
                    group.start_soon(_gather, getattr(process, name), said[name])
            code = await process.wait()
            instance.running.discard(process)
        if refused := _unable(instance):
            return refused
        texts = {name: data.decode("utf-8", "replace") for name, data in said.items()}
        return JSONResponse({**texts, "exit_code": _code(code)})

    async def _stream(self, request: Request) -> Response:
        instance = self._known(request)
        if refused := _unable(instance):
            return refused
        process = await _opened(instance, await request.json())

        async def events() -> AsyncIterator[bytes]:
            try:
                for kind, output in (("stdout", process.stdout), ("stderr", process.stderr)):
                    assert output is not None
                    async for piece in output:
                        yield _event(kind, piece.decode("utf-8", "replace"))
                code = await process.wait()
                if _unable(instance) is None:
                    yield _event("exit_code", _code(code))
                    yield b"data: [DONE]\n\n"
            except anyio.ClosedResourceError:
                return
            finally:
                instance.running.discard(process)
                with anyio.CancelScope(shield=True):
                    await process.aclose()

        return StreamingResponse(events(), media_type="text/event-stream")


async def _opened(instance: Instance, body: Json) -> Process:
    process = await anyio.open_process(instance.vm.entering(body["command"]), stdin=subprocess.DEVNULL)
    instance.running.add(process)
    return process


async def _gather(stream: Any, into: bytearray) -> None:
    with suppress(anyio.ClosedResourceError):
        async for piece in stream:
            into += piece


def _event(kind: str, content: str | int) -> bytes:
    return f"data: {json.dumps({'type': kind, 'content': content})}\n\n".encode()


def _code(code: int) -> int:
    return 128 - code if code < 0 else code


def _unable(instance: Instance) -> Response | None:
    status = instance.view()["status"]
    return None if status == "ready" else JSONResponse({"detail": f"the instance is {status}"}, 409)


async def _break_off(instance: Instance) -> None:
    """Nobody waits for commands of an instance that stands still or is gone."""
    for process in list(instance.running):
        if process.returncode is None:
            process.kill()
        for output in (process.stdout, process.stderr):
            assert output is not None
            await output.aclose()


def _set_ttl(instance: Instance, body: Json) -> None:
    seconds = body.get("ttl_seconds")
    instance.ttl = {"ttl_seconds": seconds, "ttl_action": body.get("ttl_action") or "stop"}
    if seconds is not None:
        instance.ttl["ttl_expire_at"] = int(time.time()) + seconds


async def _body(request: Request) -> Json:
    return (await request.json() if await request.body() else None) or {}


def _listing(request: Request, views: list[Json]) -> Response:
    wanted = {
        name[len("metadata[") : -1]: value for name, value in request.query_params.items() if name[:9] == "metadata["
    }
    data = [view for view in views if wanted.items() <= view["metadata"].items()]
    return JSONResponse({"object": "list", "data": data})


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """The address at which an application answers, in a thread of its own, for as long as the block lasts."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
