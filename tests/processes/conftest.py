"""The process managers, each tried in a machine of every provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
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


# In `make test`, `detached` passes everything on bubblewrap and in containers, `tmux` the contract on bubblewrap.
# The runner is the same everywhere, so other combinations run what differs: in an emulated VM, where each test takes
# many seconds, what depends on the guest's kernel and file systems; with PM2, and with tmux in containers, how
# processes start, show, read and end. The rest is `make long PART=processes`; crowds and kills are
# `make long PART=storms`.
IN_VMS = {
    "test_a_started_process_is_running_and_has_a_pid",
    "test_exit_codes_are_exact",
    "test_racing_starts_start_once",
    "test_lines_arrive_while_the_process_runs",
    "test_a_process_is_lost_with_its_machine_and_its_output_is_not",
    "test_stopping_kills_what_will_not_end_and_all_that_it_started",
    "test_binary_output_is_kept_and_the_two_outputs_stay_apart",
    "test_a_stopped_process_is_not_started_again",
    "test_unknown_processes_are_errors",
    "test_what_is_sent_is_read_and_closing_ends_it",
    "test_a_process_past_its_memory_is_killed_and_that_is_told",
    "test_an_exit_code_is_kept",
}
FOR_PEOPLE_IN_VMS = {"test_type_see_leave_come_back", "test_the_process_called_agent_is_the_tmux_session_agent"}
DIFFERING = {
    "test_a_started_process_is_running_and_has_a_pid",
    "test_exit_codes_are_exact",
    "test_racing_starts_start_once",
    "test_odd_but_fair_names_work",
    "test_lines_arrive_while_the_process_runs",
    "test_a_process_is_lost_with_its_machine_and_its_output_is_not",
    "test_stopping_kills_what_will_not_end_and_all_that_it_started",
    "test_unknown_processes_are_errors",
    "test_what_is_sent_is_read_and_closing_ends_it",
    "test_a_process_past_its_memory_is_killed_and_that_is_told",
    "test_instances_run_side_by_side_each_with_its_own",
    "test_an_exit_code_is_kept",
}
STORMS = (
    "test_a_crowd_of_processes",
    "test_a_fork_bomb",
    "test_a_start_that_was_cancelled",
    "test_a_killed_sender",
    "test_two_hundred_processes",
    "test_messages_of_many_senders",
    "test_a_flood_is_bounded",
)
ONCE = "[bubblewrap-detached]"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    own = [item for item in items if item.path.parent == Path(__file__).parent]
    impossible = [item for item in own if _is_impossible(item)]
    config.hook.pytest_deselected(items=impossible)
    items[:] = [item for item in items if item not in set(impossible)]
    for item in own:
        if part := _part_of(item):
            item.add_marker(pytest.mark.long(part))


def _parameters(item: pytest.Item) -> Mapping[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _is_impossible(item: pytest.Item) -> bool:
    offer, manager = _parameters(item).get("offer"), _parameters(item).get("manager")
    if offer == LARGE:
        return manager != "pm2"  # the others run in the small VM
    if offer != "qemu":
        return False
    # The small image of VMs has no Node. And an emulated VM is too slow for what happens while a runner waits.
    return item.path.stem == "test_pm2" or manager == "pm2" or item.name.startswith("test_the_end_is_told_when")


def _part_of(item: pytest.Item) -> str | None:
    """Return the part of `make long` that runs this test, or None for those in `make test`."""
    offer, manager, test = *map(_parameters(item).get, ("offer", "manager")), item.name.partition("[")[0]
    if test.startswith(STORMS) and not item.name.endswith(ONCE):
        return "storms"
    if offer == LARGE:
        return "processes"
    if offer == "qemu":
        return None if manager in (None, "detached") and test in IN_VMS | FOR_PEOPLE_IN_VMS else "processes"
    contract = item.path.stem == "test_process_manager_contract"
    if manager == "pm2" or (manager == "tmux" and (offer == "docker" or not contract)):
        return None if test in DIFFERING else "processes"
    return "processes" if item.path.stem == "test_pm2" and offer == "docker" else None
