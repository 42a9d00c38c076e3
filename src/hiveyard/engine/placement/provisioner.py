"""Provide the repository's copy, the image and the machine lease of a task or session. Each step first checks what
exists, so that it can be repeated."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, suppress

from sqlalchemy import Connection

from hiveyard import repository
from hiveyard.core.errors import NoSuchMachine
from hiveyard.core.events import Notice, SessionPrepared
from hiveyard.core.machines import Image, MachineSpec, Network, Report, Shape
from hiveyard.core.ports import Provider
from hiveyard.engine.placement.machine_lease import MachineLease, machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import RunSpec
from hiveyard.engine.workspace.session_files import session_files
from hiveyard.store import journal, lineage, views


class Provisioner:
    """The steps from a run request to a machine lease, for the session `id`. `image` and `shape` override those of the
    request."""

    def __init__(
        self, id: str, spec: RunSpec, resources: Resources, *, image: str = "", shape: Shape | None = None
    ) -> None:
        self.id = id
        self._spec = spec
        self._fixed_image = image
        self._fixed_shape = shape
        self._r = resources
        self._event_log = resources.event_log
        self._workspace = resources.workspace(id)

    async def take(self) -> None:
        """Copy the repository to the host's side of the session."""
        session = await self._event_log.read(lambda conn: views.session(conn, self.id))
        if session.base is not None:
            return
        async with self._event_log.phase(self.id, "clone"), self._progress("copying the repository") as report:
            taken = await repository.take(
                repository.parse_source(self._spec.repo),
                self._workspace.origin,
                base=self._spec.base,
                include_dirty=self._spec.include_dirty,
                report=report,
            )
        heads, now = await repository.heads(self._workspace.origin), self._r.clock.now()

        def write(conn: Connection) -> None:
            branch = self._spec.branch or repository.branch_name(session.slug, heads | views.branches(conn))
            for notice in taken.notices:
                journal.record(conn, self.id, Notice(message=notice), at=now)
            prepared = SessionPrepared(base=taken.base, branch=branch, base_ref=taken.base_ref)
            journal.record(conn, self.id, prepared, at=now)

        await self._event_log.store.write(write)

    async def check_out(self) -> None:
        """Check out the repository for the first machine. Later machines have the files of the one before."""
        session = await self._event_log.read(lambda conn: views.session(conn, self.id))
        assert session.base is not None and session.branch is not None
        if self._workspace.disk.exists() or await self._event_log.read(lambda conn: lineage.has_run(conn, self.id)):
            return
        async with self._event_log.phase(self.id, "push"), self._progress("checking out the repository") as report:
            await repository.checkout(
                *(self._workspace.origin, self._workspace.shared),
                base=session.base,
                branch=session.branch,
                report=report,
            )

    async def image(self, provider: Provider) -> Image:
        """Build the image if needed, and prepare it for the provider."""
        async with self._event_log.phase(self.id, "image"), self._progress("preparing the image") as report:
            image = await self._r.images.get(await self._image_name(provider), report)
            await provider.prepare(image, self.shape, report)
        return image

    async def _image_name(self, provider: Provider) -> str:
        """Return the image of an existing machine, because its recipe may have changed since; else the requested
        one."""
        if self._fixed_image:
            return self._fixed_image
        with suppress(NoSuchMachine):
            if image := (await provider.get(machine_name(self.id))).image:
                return image
        return self._spec.image or self._r.settings.image

    @property
    def shape(self) -> Shape:
        spec, settings = self._spec, self._r.settings
        return self._fixed_shape or Shape(
            memory_mib=spec.memory_mib or settings.memory_mib,
            cpus=spec.cpus or settings.cpus,
            disk_gib=spec.disk_gib or settings.disk_gib,
        )

    def lease(self, provider: Provider, image: Image, *, door: bool = True) -> MachineLease:
        """Return a lease on the machine, which need not exist yet."""
        spec = MachineSpec(
            image=image,
            shape=self.shape,
            door=self._r.door_path(self.id) if door else None,
            network=Network(self._spec.network),
            metadata={"session": self.id},
        )
        return MachineLease(self.id, provider, spec, self._event_log, session_files(self._workspace, provider))

    def _progress(self, step: str) -> AbstractAsyncContextManager[Report]:
        return self._event_log.progress(self.id, step)
