"""What can be told to be wrong with a wish before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import anyio.to_thread
import msgspec

from hiveyard import repository
from hiveyard.agents import by_name
from hiveyard.core.errors import BadInput
from hiveyard.core.machines import HOST, Tier
from hiveyard.door import recorder
from hiveyard.door.tape import Tape
from hiveyard.engine.placement import capacity
from hiveyard.engine.placement.provider_choice import check_door, named
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import RunSpec
from hiveyard.engine.settings import AgentSettings

W = TypeVar("W", bound=RunSpec)


def completed(wish: W, resources: Resources) -> W:
    """The wish with what the settings say for its agent, to be kept so: a conversation goes on as it began, whatever
    they say later. Raises UnknownAgent, NoSuchImage."""
    name = wish.agent or resources.settings.agent
    program, default = by_name(name).program, resources.agents.get(name, AgentSettings())
    own = resources.images.bringing(program)
    return msgspec.structs.replace(
        wish,
        model=wish.model or default.model or None,
        image=wish.image or default.image or (own if own != resources.settings.image else None),
        account=wish.account or default.account or None,
    )


async def check(wish: RunSpec, resources: Resources) -> None:
    """Raises BadInput, UnknownAgent, NoSuchImage, CredentialsError, RepositoryError, BadTape, NoMemory."""
    settings, providers = resources.settings, resources.providers
    agent = by_name(wish.agent or settings.agent)
    wanted = wish.provider or settings.provider
    if wanted != "auto":
        check_door(named(wanted, providers))
    if wanted == "auto" or not named(wanted, providers).capabilities.remote:
        capacity.check_size(settings, wish.memory_mib)
    image = wish.image or settings.image
    _check_image(image, wanted, resources)
    resources.images.check_program(image, agent.program)
    check_account(wish, resources)
    await repository.check(repository.parse_source(wish.repo), base=wish.base, branch=wish.branch)
    await anyio.to_thread.run_sync(_check_tapes, wish)
    # Behind an open network there may be models that no door leads to.
    if wish.tape is None and wish.network != "open":
        resources.keys.find_any(agent.protocols, wish.account or settings.account)


def check_account(wish: RunSpec, resources: Resources) -> None:
    """An account that is there, and is for this agent. Raises BadInput, CredentialsError."""
    account, agent = wish.account or resources.settings.account, wish.agent or resources.settings.agent
    resources.keys.check(account)
    resources.keys.check_agent(account, agent)


def _check_image(image: str, provider: str, resources: Resources) -> None:
    resources.images.check(image)
    if image == HOST.name and (provider == "auto" or resources.providers[provider].tier is not Tier.NAMESPACE):
        raise BadInput(
            "the host's own programs can only be used by the namespace tier, and that must be asked for",
            hint="hv run REPO -m TEXT --image host --provider bubblewrap",
        )


def _check_tapes(wish: RunSpec) -> None:
    """A tape that cannot be read, or a recording that cannot be made, is told now and not after the clone."""
    if wish.tape is not None:
        Tape.load(Path(wish.tape))
    if wish.record is not None:
        recorder.check(Path(wish.record))
