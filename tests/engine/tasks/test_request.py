"""Validating a request by itself."""

from __future__ import annotations

from typing import Any

import pytest

from hiveyard.core.errors import BadInput
from hiveyard.engine.tasks.request import TaskRequest, from_json

GOOD: dict[str, Any] = {"repo": "/r", "prompt": "do it"}


def test_a_request_can_be_stored_and_parsed_again() -> None:
    request = TaskRequest(**GOOD, include_dirty=True, budget_usd=0.5, model="m")
    assert from_json(request.as_json()) == request


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": " \n\t"}, "empty"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"timeout": 0.0}, r"timeout is 0.0, it must be a number \(above 0, at most 31622400\) or null"),
        ({"timeout": -3.0}, "timeout is -3.0"),
        ({"timeout": "soon"}, "timeout 'soon' is not a duration"),
        ({"timeout": float("nan")}, "timeout is NaN"),
        ({"budget_usd": 0.0}, "budget_usd is 0.0"),
        ({"budget_usd": float("inf")}, "budget_usd is Infinity"),
        ({"network": "wide"}, 'network is "wide", it must be one of "door", "open"'),
        ({"keep": "yes"}, 'keep is "yes", it must be true or false'),
        ({"agent": ["\x1b[2J"]}, r'agent is \["\\u001b\[2J"\], it must be a text or null'),
        ({"memory_mib": 0}, r"memory_mib is 0, it must be a whole number \(at least 1"),
        ({"memory_mib": 64}, "memory_mib is 64, the minimum is 128"),
        ({"cpus": 10**30}, "cpus is 1000000000000"),
        ({"prompt": "\udcff"}, "not Unicode"),
        ({"tape": "/t", "record": "/r"}, "choose one"),
        ({"tape": "t"}, "absolute"),
        ({"agent": "command"}, "command line"),
        ({"command": "make", "agent": "claude"}, "--command"),
    ],
)
def test_a_bad_request_is_reported_in_one_line(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint) as raised:
        from_json({**GOOD, **change}).checked()
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "a task request needs the field 'repo'"),
        ({"repo": "/r"}, "a task request needs the field 'prompt'"),
        ({**GOOD, "branhc": "b"}, """has no field 'branhc' \\(here it is "b"\\)"""),
        ([], r"a task request must be an object, not \[\]"),
        (None, "not null"),
    ],
)
def test_malformed_data_is_bad_input(data: object, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        from_json(data)


def test_the_error_for_a_misspelt_field_names_the_right_one() -> None:
    with pytest.raises(BadInput) as raised:
        from_json({**GOOD, "timout": 5})
    assert raised.value.hint == "did you mean 'timeout'?"
