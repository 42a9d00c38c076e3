"""Validate a run request before anything is created."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import anyio.to_thread
import msgspec

from hiveyard import repository
from hiveyard.agents import by_name
from hiveyard.core.errors import BadInput
from hiveyard.core.machines import HOST, Tier
from hiveyard.door import tape_recorder
from hiveyard.door.tape import Tape
from hiveyard.engine.placement import capacity
from hiveyard.engine.placement.provider_choice import check_door, named
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import RunSpec
from hiveyard.engine.settings import AgentSettings

W = TypeVar("W", bound=RunSpec)


def with_defaults(spec: W, resources: Resources) -> W:
    """Return the request with the settings' values for its agent filled in. They are stored with it: a conversation
    continues as it began, whatever the settings say later. Raises UnknownAgent, NoSuchImage."""
    name = spec.agent or resources.settings.agent
    program, default = by_name(name).program, resources.agents.get(name, AgentSettings())
    own = resources.images.image_for(program)
    return msgspec.structs.replace(
        spec,
        model=spec.model or default.model or None,
        image=spec.image or default.image or (own if own != resources.settings.image else None),
        account=spec.account or default.account or None,
    )


async def validate(spec: RunSpec, resources: Resources) -> None:
    """Validate a request against this host. Raises BadInput, UnknownAgent, NoSuchImage, CredentialsError,
    RepositoryError, BadTape, NoMemory."""
    settings, providers = resources.settings, resources.providers
    agent = by_name(spec.agent or settings.agent)
    wanted = spec.provider or settings.provider
    if wanted != "auto":
        check_door(named(wanted, providers))
    if wanted == "auto" or not named(wanted, providers).capabilities.remote:
        capacity.check_size(settings, spec.memory_mib)
    check_image(spec, wanted, resources)
    check_account(spec, resources)
    await repository.check(repository.parse_source(spec.repo), base=spec.base, branch=spec.branch)
    await anyio.to_thread.run_sync(_check_tapes, spec)
    # With an open network the agent may use models that the door does not serve.
    if spec.tape is None and spec.network != "open":
        resources.keys.find_any(agent.protocols, spec.account or settings.account)


def check_account(spec: RunSpec, resources: Resources) -> None:
    """Check that the account exists and may be used for this agent. Raises BadInput, CredentialsError."""
    account, agent = spec.account or resources.settings.account, spec.agent or resources.settings.agent
    resources.keys.check(account)
    resources.keys.check_agent(account, agent)


def check_image(spec: RunSpec, provider: str, resources: Resources) -> None:
    """Check that the image exists, has the agent's program, and may be used by the provider. Raises BadInput,
    NoSuchImage."""
    image, agent = spec.image or resources.settings.image, spec.agent or resources.settings.agent
    resources.images.check(image)
    resources.images.check_program(image, by_name(agent).program)
    if image == HOST.name and (provider == "auto" or resources.providers[provider].tier is not Tier.NAMESPACE):
        raise BadInput(
            "only the namespace tier can use the host's own programs, and it must be requested",
            hint="hv run REPO -m TEXT --image host --provider bubblewrap",
        )


def _check_tapes(spec: RunSpec) -> None:
    """Check that the tape can be read and that the recording can be created, before the clone starts."""
    if spec.tape is not None:
        Tape.load(Path(spec.tape))
    if spec.record is not None:
        tape_recorder.check(Path(spec.record))
