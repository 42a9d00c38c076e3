"""The page's process manager passes what is said of starting, output and stopping, and refuses what it has not."""

# ruff: noqa: F401 - the tests that are brought in are run here
from __future__ import annotations

import pytest

from hiveyard.core.commands import Command, ProcessSpec, Restart
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Guest, ProcessManager
from tests.processes.test_process_manager_contract import (
    test_a_large_prompt_arrives_intact_by_stdin,
    test_a_program_with_an_equals_sign_in_its_name_is_run,
    test_a_removed_process_is_forgotten_and_a_running_one_is_not,
    test_a_start_that_was_cancelled_is_finished_by_the_next,
    test_a_started_process_is_running_and_has_a_pid,
    test_binary_output_is_kept_and_the_two_outputs_stay_apart,
    test_exit_codes_are_exact,
    test_following_can_be_left_and_taken_up_again,
    test_home_is_meant_by_a_tilde,
    test_hostile_names_are_refused,
    test_lines_arrive_while_the_process_runs,
    test_odd_but_fair_names_work,
    test_racing_starts_start_once,
    test_starting_twice_starts_once,
    test_stopping_interrupts_first,
    test_stopping_leaves_other_processes_alone,
    test_stopping_twice_and_stopping_what_has_ended_are_successes,
    test_the_last_lines_are_given,
    test_unknown_processes_are_errors,
    test_what_cannot_start_is_an_error_and_leaves_nothing,
    test_without_a_file_stdin_is_at_its_end,
    test_words_environment_and_directory_arrive_as_they_are,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "wish", [{"restart": Restart(max_restarts=1)}, {"inbox": True}, {"terminal": True}, {"memory_mib": 64}]
)
async def test_what_it_has_not_is_refused(
    manager: ProcessManager, guest: Guest, name: str, wish: dict[str, object]
) -> None:
    with pytest.raises(BadInput, match="plain runs one program once"):
        await manager.start(guest, ProcessSpec(name=name, command=Command(argv=("true",)), **wish))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no inbox"):
        await manager.send(guest, name, "a key", b"hello")
