"""The page's provider passes what is said of every provider, and does what it is for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from hiveyard.core.errors import ProviderUnavailable
from hiveyard.core.machines import HOST, MachineSpec
from hiveyard.core.ports import Provider
from tests.contract.test_provider_contract import *  # noqa: F403
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


async def test_one_machine_too_many_is_made_when_another_is_gone(works: None, site: Path) -> None:
    with searched_directory() as scratch:
        provider: Provider = import_module("yard_extras.few").Few(Path(scratch, "state"), Path(scratch, "cache"), 1)
        spec = MachineSpec(image=HOST)
        await provider.prepare(HOST, spec.shape)
        await provider.boot("first", spec)
        with pytest.raises(ProviderUnavailable, match="second would be one too many of 1") as caught:
            await provider.boot("second", spec)
        assert caught.value.hint == "terminate one of first"
        await provider.terminate("first")
        assert (await provider.boot("second", spec)).provider == "few"
        await provider.terminate("second")
