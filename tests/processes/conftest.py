"""The process managers, each tried in a machine of every provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.machines import Shape
from hiveyard.core.ports import ProcessManager
from hiveyard.extras.pm2 import Pm2
from hiveyard.images.images import Images
from hiveyard.kit.names import new_id
from hiveyard.paths import default_paths
from hiveyard.processes.detached import Detached
from hiveyard.processes.tmux import Tmux
from tests.contract.conftest import guest, offered, parameters, shared
from tests.contract.providers import LOCAL, Offer
from tests.contract.rootfs import small_image
from tests.support.leaks import searched_directory

__all__ = ["guest", "shared"]

ROOT = Path(__file__).parents[2]
LARGE = "qemu-default"
MANAGERS: dict[str, Callable[[], ProcessManager]] = {"detached": Detached, "tmux": Tmux, "pm2": Pm2}


@pytest.fixture(scope="session", params=[*parameters(LOCAL), pytest.param(LARGE, marks=pytest.mark.real)])
async def offer(request: pytest.FixtureRequest) -> AsyncIterator[Offer]:
    """The small image gets PM2, too; that of VMs has no Node, and so there is one more with the default image."""
    async with offered(request.param.removesuffix("-default")) as offer:
        if request.param == "qemu":
            yield offer
        elif request.param == LARGE:
            image = await Images(default_paths().cache).ensure("default", print)
            await offer.provider.prepare(image, Shape())
            yield replace(offer, image=image, shape=Shape())
        else:
            async with _with_pm2(offer) as able:
                yield able


@asynccontextmanager
async def _with_pm2(offer: Offer) -> AsyncIterator[Offer]:
    npm = (await anyio.run_process([str(ROOT / "scripts/pm2")])).stdout.decode().strip()
    with searched_directory() as scratch:
        image = replace(small_image(scratch, npm=Path(npm)), id=new_id())
        await offer.provider.prepare(image, offer.shape)
        yield replace(offer, image=image)
        await offer.provider.release_image(image.id)


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest) -> ProcessManager:
    return MANAGERS[request.param]()


@pytest.fixture
def name() -> str:
    """A name for a process that no other test uses."""
    return new_id()


@pytest.fixture
def flood(request: pytest.FixtureRequest) -> int:
    """Bytes of a flood: as much as an emulated machine can write in a minute, else 1 GiB."""
    return (64 << 20) if "qemu" in request.node.callspec.id else (1 << 30)


@pytest.fixture
def crowd(request: pytest.FixtureRequest) -> int:
    """How many processes are many: an emulated machine takes seconds to start each."""
    return 5 if "qemu" in request.node.callspec.id else 50


# What an emulated machine is asked of these: what depends on its kernel and its file systems. The rest takes it
# minutes, and the runner is the same everywhere.
IN_VMS = {
    "test_what_is_sent_is_read_and_closing_ends_it",
    "test_a_message_of_one_key_arrives_once",
    "test_the_next_run_gets_what_the_former_did_not_read",
    "test_a_process_past_its_memory_is_killed_and_that_is_told",
    "test_instances_run_side_by_side_each_with_its_own",
    "test_outputs_are_kept_in_files_of_ones_own",
    "test_a_rotated_output_keeps_its_end_and_its_offsets",
    "test_a_cancelled_start_ends_the_process_and_all_that_it_started",
    "test_an_exit_code_is_kept",
}
# What it is asked of `tmux` and `pm2`, whose runner is that of `detached`: how that begins, shows and ends there.
FOR_PEOPLE_IN_VMS = {
    "test_a_started_process_is_running_and_has_a_pid",
    "test_exit_codes_are_exact",
    "test_racing_starts_start_once",
    "test_a_start_that_was_cancelled_is_finished_by_the_next",
    "test_odd_but_fair_names_work",
    "test_lines_arrive_while_the_process_runs",
    "test_a_process_is_lost_with_its_machine_and_its_output_is_not",
    "test_a_crowd_of_processes_lives_side_by_side",
    "test_stopping_kills_what_will_not_end_and_all_that_it_started",
    "test_unknown_processes_are_errors",
}
SLOW = ("test_full_disk", "test_inbox_contract", "test_limits_contract", "test_shell")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not _wanted(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _wanted(item: pytest.Item) -> bool:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if item.path.parent != Path(__file__).parent or parameters.get("offer") not in ("qemu", LARGE):
        return True
    module, test = item.path.stem, item.name.partition("[")[0]
    if parameters["offer"] == LARGE:
        return parameters.get("manager") == "pm2" and test in FOR_PEOPLE_IN_VMS
    if test.startswith("test_the_end_is_told_when"):
        return False  # it asks for more in the seconds that a runner waits than an emulated machine can do
    if module == "test_pm2" or parameters.get("manager") == "pm2":
        return False  # the small image of the tests' VMs has no Node
    if parameters.get("manager") == "tmux":
        return module == "test_terminals" or test in FOR_PEOPLE_IN_VMS
    return module not in SLOW or test in IN_VMS
