"""Events of doors: requests to models, answered or refused."""

from __future__ import annotations

from typing import Literal

from hiveyard.core.events.body import Body, Failure
from hiveyard.core.usage import Usage


class ModelCalled(Body, frozen=True, kw_only=True, tag="model.called"):
    """A request to a model was answered. `status` is the HTTP status. `complete` is False if the stream was cut."""

    protocol: str
    model: str
    status: int
    seconds: float
    usage: Usage
    complete: bool = True
    source: Literal["upstream", "tape"] = "upstream"


class ModelFailed(Body, frozen=True, kw_only=True, tag="model.failed"):
    """A request to a model got no useful answer."""

    protocol: str
    failure: Failure
    status: int = 0


class DoorRefused(Body, frozen=True, kw_only=True, tag="door.refused"):
    """The door refused a request from the guest."""

    what: str
    reason: str


class BudgetExhausted(Body, frozen=True, kw_only=True, tag="budget.exhausted"):
    """The money for this task is spent. No further request is forwarded."""

    budget_usd: float
    spent_usd: float


DoorEvent = ModelCalled | ModelFailed | DoorRefused | BudgetExhausted
