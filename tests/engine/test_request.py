"""What can be told to be wrong with a request by looking at it alone."""

from __future__ import annotations

from typing import Any

import pytest

from hiveyard.core.errors import BadInput
from hiveyard.engine.request import TaskRequest, from_json

GOOD: dict[str, Any] = {"repo": "/r", "prompt": "do it"}


def test_a_request_survives_being_stored() -> None:
    request = TaskRequest(**GOOD, include_dirty=True, budget_usd=0.5, model="m")
    assert from_json(request.as_json()) == request


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": " \n\t"}, "empty"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"timeout": 0.0}, "timeout is 0 seconds"),
        ({"timeout": -3.0}, "timeout is -3 seconds"),
        ({"budget_usd": 0.0}, "budget is 0 dollars"),
        ({"budget_usd": float("inf")}, "budget is inf"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"memory_mib": 0}, "memory_mib is 0"),
        ({"cpus": 0}, "cpus is 0"),
        ({"prompt": "\udcff"}, "not Unicode"),
        ({"tape": "/t", "record": "/r"}, "choose one"),
        ({"tape": "t"}, "absolute"),
        ({"agent": "command"}, "command line"),
        ({"command": "make", "agent": "claude"}, "--command"),
    ],
)
def test_a_bad_request_is_told_in_one_line(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint) as raised:
        from_json({**GOOD, **change}).checked()
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("data", [{}, {"repo": "/r"}, {**GOOD, "unknown": 1}, {**GOOD, "timeout": "soon"}, [], None])
def test_what_is_no_request_is_bad_input(data: object) -> None:
    with pytest.raises(BadInput, match="no task request"):
        from_json(data)


def test_a_zero_is_kept_as_it_was_said() -> None:
    assert from_json({**GOOD, "timeout": 0.0, "budget_usd": 0.0}).as_json().keys() >= {"timeout", "budget_usd"}
