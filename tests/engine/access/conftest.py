"""Fixtures for access to machines: a machine of every provider."""

from pathlib import Path

import pytest

from tests.contract.conftest import folder, guest, local_offer, place, shared

__all__ = ["folder", "guest", "local_offer", "place", "shared"]

# These look at the host's side alone, which is the same before every machine.
ON_THE_HOST = {
    "test_other_users_and_keys_are_refused",
    "test_keys_of_another_session_are_refused_and_its_port_is_not_trusted",
    "test_opening_the_same_port_twice_at_once_opens_one",
    "test_an_error_in_the_block_closes_all_ports",
    "test_a_connection_that_cannot_be_accepted_is_accepted_later",
    "test_connections_over_the_limit_wait",
    "test_hiveyard_errors_keep_their_code_and_message",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    same = [item for item in items if _is_the_same(item)]
    config.hook.pytest_deselected(items=same)
    items[:] = [item for item in items if item not in set(same)]


def _is_the_same(item: pytest.Item) -> bool:
    """Return whether a test repeats, before another machine, what it does before one of bubblewrap."""
    if item.path.parent != Path(__file__).parent or item.name.partition("[")[0] not in ON_THE_HOST:
        return False
    return isinstance(item, pytest.Function) and item.callspec.params["offer"] != "bubblewrap"
