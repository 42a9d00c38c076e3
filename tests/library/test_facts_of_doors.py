"""Requests at a machine's door are reported without the secrets that the guest knows."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from hiveyard.core.commands import Command
from hiveyard.core.events import DoorRefused, ModelCalled, Notice
from hiveyard.core.machines import HOST
from hiveyard.door.local_doors import LocalDoors
from hiveyard.kit.secret import Secret
from hiveyard.library.events import DoorReported
from tests.door.upstream import upstream, whole
from tests.library.parts import KEY, PLACEHOLDER, Yards, profile

pytestmark = pytest.mark.anyio

REFUSED = 'curl -sS -o /dev/null --path-as-is "$URL/$QUOTED/$PLACEHOLDER"'
ASKED = """curl -sS -o /dev/null "$URL/openai/v1/responses" -H "authorization: Bearer $PLACEHOLDER" \
  -H 'content-type: application/json' -d "{\\"model\\": \\"$(cat ~/p/key)\\", \\"input\\": \\"$PLACEHOLDER\\"}" """


async def test_events_of_a_door_contain_no_secret_of_its_machine(yards: Yards) -> None:
    """The fixture searches all that was said, too."""
    async with upstream(whole(b"{}")) as up:
        where = {"OPENAI_API_KEY": "sk-Zq8TestSecret-of-this-side", "HIVEYARD_OPENAI_UPSTREAM": up.url}
        async with yards.yard(doors=LocalDoors(where)) as yard:
            ready = await yard.boot_and_prepare(
                HOST, credential_profiles=[profile(real=True)], real=["probe"], placeholder=Secret(PLACEHOLDER)
            )
            env = {
                "PLACEHOLDER": PLACEHOLDER,
                "QUOTED": quote(KEY, safe=""),
                "URL": yards.provider.capabilities.door_url,
            }
            async with yards.provider.guest(ready.machine.name) as guest:
                for script in (REFUSED, ASKED):
                    done = await guest.run(Command(argv=("bash", "-c", script), env=env))
                    assert done.status == 0, done.stderr
            await yard.terminate(ready.machine)
    told = [one.fact for one in yards.events if isinstance(one, DoorReported)]
    refused, called = (next(fact for fact in told if isinstance(fact, kind)) for kind in (DoorRefused, ModelCalled))
    assert isinstance(refused, DoorRefused) and "/***" in refused.what
    assert isinstance(called, ModelCalled) and "***" in called.model
    notices = [fact.message for fact in told if isinstance(fact, Notice)]
    assert notices and all("***" in message for message in notices), "the price of the model is not known"
    said = "".join(map(repr, told))
    assert KEY not in said and PLACEHOLDER not in said
