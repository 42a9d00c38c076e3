"""Define the requests to Morph Cloud that machines need, with their arguments and answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from urllib.parse import quote

import httpx2
import msgspec

from hiveyard.core.errors import ProviderBadAnswer, ProviderNotFound, ProviderUnreachable
from hiveyard.core.machines import MachineSpec, Shape
from hiveyard.kit.responses import Answers
from hiveyard.kit.rest import ATTEMPTS, Nothing
from hiveyard.machines.morph import wire
from hiveyard.machines.morph.client import Client
from hiveyard.machines.morph.wire import Branched, Executed, Instance, Said, Snapshot, SshKey

_EVENT_LIMIT = 8 << 20  # bytes
# The service's own word for the end of a machine and all that is in it.
_TTL_ACTIONS = {"terminate": "stop", "stop": "pause", "pause": "pause"}


class Service:
    """Raises what `Client.ask` raises. Calls that make something are not repeated when it may have been made: their
    callers look, by the labels that they gave."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def bases(self, *, once: bool = False) -> list[str]:
        """Return the ids of the service's own images. `once`: do not retry, because a user waits for the answer."""
        found = await self._client.ask("GET", "/image", wire.Bases, attempts=1 if once else ATTEMPTS)
        return [base.id for base in found.data]

    async def boot_base(self, image: str, shape: Shape, metadata: Mapping[str, str], ttl: int) -> Instance:
        body = {
            "vcpus": shape.whole_cpus,
            "memory": shape.memory_mib,
            "disk_size": shape.disk_gib << 10,
            "metadata": dict(metadata),
            "ttl_seconds": ttl,
            "ttl_action": "stop",
        }
        return await self._client.ask("POST", f"/image/{_part(image)}/boot", Instance, body=body, again=False)

    # --- snapshots -----------------------------------------------------------------------------------------------

    async def snapshots(self, metadata: Mapping[str, str]) -> list[Snapshot]:
        """Return the snapshots with all these labels. The answer of the service is filtered again."""
        found = await self._client.get("/snapshot", wire.Snapshots, _filter(metadata))
        return [one for one in found.data if metadata.items() <= one.metadata.items()]

    async def snapshot(self, id: str) -> Snapshot:
        return await self._client.get(f"/snapshot/{_part(id)}", Snapshot)

    async def take(self, instance: str, metadata: Mapping[str, str], timeout: float) -> Snapshot:
        """Take a snapshot of an instance."""
        return await self._client.ask(
            "POST",
            f"/instance/{_part(instance)}/snapshot",
            Snapshot,
            body={"metadata": dict(metadata)},
            again=False,
            timeout=timeout,
        )

    async def drop(self, snapshot: str) -> None:
        await self._gone("DELETE", f"/snapshot/{_part(snapshot)}")

    # --- instances -----------------------------------------------------------------------------------------------

    async def start(self, snapshot: str, metadata: Mapping[str, str], spec: MachineSpec) -> Instance:
        body = {"metadata": dict(metadata), **ttl_of(spec)}
        query = {"snapshot_id": snapshot}
        return await self._client.ask("POST", "/instance", Instance, query=query, body=body, again=False)

    async def branch(
        self, instance: str, metadata: Sequence[Mapping[str, str]], snapshot: Mapping[str, str], timeout: float
    ) -> Branched:
        """As many new instances as there are metadata, each going on where `instance` stands, by way of a snapshot with
        metadata of its own."""
        return await self._client.ask(
            "POST",
            f"/instance/{_part(instance)}/branch",
            Branched,
            query={"count": str(len(metadata))},
            body={"instance_metadata": [dict(one) for one in metadata], "snapshot_metadata": dict(snapshot)},
            again=False,
            timeout=timeout,
        )

    async def instances(self, metadata: Mapping[str, str]) -> list[Instance]:
        """Return the instances with all these labels, the newest first."""
        found = await self._client.get("/instance", wire.Instances, _filter(metadata))
        ours = [one for one in found.data if metadata.items() <= one.metadata.items()]
        return sorted(ours, key=lambda one: (one.created, one.id), reverse=True)

    async def instance(self, id: str) -> Instance:
        return await self._client.get(f"/instance/{_part(id)}", Instance)

    async def end(self, instance: str) -> None:
        """Stop an instance for good. An absent one is a success."""
        await self._gone("DELETE", f"/instance/{_part(instance)}")

    async def pause(self, instance: str, timeout: float) -> Instance:
        return await self._client.ask("POST", f"/instance/{_part(instance)}/pause", Instance, timeout=timeout)

    async def resume(self, instance: str, timeout: float) -> Instance:
        return await self._client.ask("POST", f"/instance/{_part(instance)}/resume", Instance, timeout=timeout)

    async def label(self, instance: str, metadata: Mapping[str, str]) -> Instance:
        """Replace all labels of an instance."""
        return await self._client.ask("POST", f"/instance/{_part(instance)}/metadata", Instance, body=dict(metadata))

    async def live(self, instance: str, spec: MachineSpec) -> Instance:
        """Set its lifetime to the one of `spec`, starting now."""
        body = {"ttl_seconds": None, **ttl_of(spec)}
        return await self._client.ask("POST", f"/instance/{_part(instance)}/ttl", Instance, body=body)

    async def expose(self, instance: str, name: str, port: int) -> Instance:
        body = {"name": name, "port": port, "auth_mode": "api_key"}
        return await self._client.ask("POST", f"/instance/{_part(instance)}/http", Instance, body=body)

    async def conceal(self, instance: str, name: str) -> None:
        await self._gone("DELETE", f"/instance/{_part(instance)}/http/{_part(name)}")

    async def ssh_key(self, instance: str) -> SshKey:
        """Return the ssh key for this instance only."""
        return await self._client.get(f"/instance/{_part(instance)}/ssh/key", SshKey)

    # --- commands ------------------------------------------------------------------------------------------------

    async def execute(
        self, instance: str, command: Sequence[str], *, again: bool = True, timeout: float | None = None
    ) -> Executed:
        """Run a command as root until it ends. Use `again` only for a command that may run twice."""
        path = f"/instance/{_part(instance)}/exec"
        return await self._client.ask(
            "POST", path, Executed, body={"command": list(command)}, again=again, timeout=timeout
        )

    @asynccontextmanager
    async def executing(
        self, instance: str, command: Sequence[str], silence: float
    ) -> AsyncIterator[AsyncIterator[Said]]:
        """Run a command and yield its output as it arrives, with at most `silence` seconds between two pieces."""
        path = f"/instance/{_part(instance)}/exec/sse"
        async with (
            self._client.stream(path, {"command": list(command)}, silence) as response,
            aclosing(_events(f"POST {path}", response, self._client.answers)) as events,
        ):
            yield events

    async def _gone(self, method: str, path: str) -> None:
        try:
            await self._client.ask(method, path, Nothing)
        except ProviderNotFound:
            return


async def _events(doing: str, response: httpx2.Response, answers: Answers) -> AsyncGenerator[Said, None]:
    """Decode a stream. Raises ProviderUnreachable if it ends without the service's last event."""
    with answers.translated(doing):
        async for event in httpx2.EventSource(response, max_event_size=_EVENT_LIMIT):
            if event.data == "[DONE]":
                return
            try:
                said = msgspec.json.decode(event.data, type=Said)
            except (msgspec.DecodeError, RecursionError) as error:
                raise ProviderBadAnswer(f"morph: {doing}: a piece is not what it should be: {error}") from error
            yield said
            if said.type == "exit_code":
                return
    raise ProviderUnreachable(f"morph: {doing}: the answer was cut")


def ttl_of(spec: MachineSpec) -> dict[str, object]:
    return {} if spec.ttl is None else {"ttl_seconds": spec.ttl, "ttl_action": _TTL_ACTIONS[spec.ttl_action]}


def _filter(metadata: Mapping[str, str]) -> dict[str, str]:
    return {f"metadata[{key}]": value for key, value in metadata.items()}


def _part(id: str) -> str:
    """Return an id of the service, encoded as a single part of a path."""
    return quote(id, safe="")
