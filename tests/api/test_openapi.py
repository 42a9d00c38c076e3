"""Check that the daemon answers every request as its OpenAPI document says, and never with a 5xx.

Schemathesis makes valid and invalid requests from the document. The seed is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Err

from tests.api.unix import BASE, session
from tests.cli.conftest import Hv, hv, shared_home
from tests.engine.conftest import repo

__all__ = ["hv", "repo", "shared_home"]

FEW, MANY = 8, 100
"""Requests of each kind per operation."""

# The document does not say which repositories and images exist: a valid request may still be refused.
_LEFT_OUT = ("positive_data_acceptance", "ensure_resource_availability", "use_after_free", "ignored_auth")


class Api:
    """A daemon with one task, asked over its socket."""

    def __init__(self, hv: Hv, repo: Path, http: requests.Session) -> None:
        self.task: Any = {"repo": str(repo), "prompt": "x", "agent": "command", "command": "echo x > x"}
        self.id = hv.json("run", str(repo), "-m", "x", "--command", "echo x > x")["id"]
        self.http = http
        load_all_checks()
        self._left_out = CHECKS.get_by_names(_LEFT_OUT)
        self.schema = schemathesis.openapi.from_dict(http.get(f"{BASE}/v1/openapi.json").json())

    def operations(self) -> Iterator[Any]:
        for found in self.schema.get_all_operations():
            assert not isinstance(found, Err)
            operation = found.ok()
            if operation.path != "/v1/shutdown":
                yield operation

    def check(self, case: Case[Any]) -> None:
        case.call_and_validate(base_url=BASE, session=self.http, excluded_checks=self._left_out)  # type: ignore[arg-type]


@pytest.fixture
def api(hv: Hv, repo: Path) -> Iterator[Api]:
    hv.json("ps")
    with session(hv.home / "run" / "api.sock") as http:
        yield Api(hv, repo, http)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long("storms"))])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_request_is_answered_as_documented(api: Api, mode: GenerationMode, count: int) -> None:
    asked = 0
    for operation in api.operations():
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # any text may be a task's name: there is nothing to make wrong
        asked += _put(api, operation.as_strategy(generation_mode=mode), count)
    assert asked > 50


def test_what_is_asked_of_a_task_that_is_there_is_answered_as_documented(api: Api) -> None:
    for operation in api.operations():
        if "{ref}" in operation.path and operation.method != "delete":
            _put(api, operation.as_strategy(path_parameters={"ref": api.id}), FEW)
    creation = api.schema["/v1/tasks"]["POST"]
    api.check(creation.Case(body=api.task, media_type="application/json"))
    removal = api.schema["/v1/tasks/{ref}"]["DELETE"]
    api.check(removal.Case(path_parameters={"ref": api.id}))


def _put(api: Api, strategy: Any, count: int) -> int:
    """Make requests and check their answers; how many there were."""
    asked = 0

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def check(case: Case[Any]) -> None:
        nonlocal asked
        asked += 1
        api.check(_nowhere(case))

    run: Callable[[], None] = check
    run()
    return asked


def _nowhere(case: Case[Any]) -> Case[Any]:
    """No host of the world is asked for a repository that somebody made up."""
    if isinstance(case.body, dict) and isinstance(case.body.get("repo"), str):
        case.body["repo"] = "/nowhere"
    return case
