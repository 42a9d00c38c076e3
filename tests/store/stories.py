"""Sequences of events for tests to record."""

from __future__ import annotations

from hiveyard.core import events as e
from hiveyard.core.usage import Usage

FAILURE = e.Failure(code="machine.lost", message="it went away", hint="hv show x")


def beginning(slug: str = "fix-it") -> list[e.AnyBody]:
    return [
        e.TaskCreated(slug=slug, request={"repo": "/r", "prompt": "fix\nit", "budget": 0.5}),
        e.SessionCreated(slug=slug, repo="/r", agent="claude"),
    ]


def middle(machine: str = "hv-1") -> list[e.AnyBody]:
    return [
        e.TaskAssigned(provider="qemu", tier="vm", machine=machine, why="strongest here"),
        e.SessionPreparing(),
        e.SessionPrepared(base="a" * 40, branch="hv/fix-it"),
        e.MachineBooting(machine=machine, provider="qemu"),
        e.MachineReady(machine=machine, seconds=0.4),
        e.SessionRunning(),
        e.TaskStarted(),
    ]


def end(machine: str = "hv-1") -> list[e.AnyBody]:
    return [
        e.ResultCollected(branch="hv/fix-it", base="a" * 40, head="b" * 40, commits=2, files=1, insertions=3),
        e.MachineStopping(machine=machine),
        e.MachineStopped(machine=machine),
        e.SessionFinished(),
        e.TaskCompleted(),
    ]


def turn() -> list[e.AnyBody]:
    return [
        e.TurnStarted(agent="claude", program="2.1.0", model="sonnet", pid=42),
        e.AgentStarted(conversation="c-1", model="claude-sonnet", version="2.1.0"),
        e.AgentText(text="I look"),
        e.AgentToolCalled(call="t1", tool="Bash", summary="Bash: pytest -q"),
        called(10, 20, 0.25),
        e.AgentToolReturned(call="t1", output="1 failed", is_error=True),
        e.AgentEnded(is_error=False, text="done"),
        e.TurnEnded(outcome="succeeded", exit_code=0, conversation="c-1"),
    ]


def called(tokens_in: int, tokens_out: int, cost: float | None) -> e.ModelCalled:
    usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out, cost_usd=cost, requests=1)
    return e.ModelCalled(protocol="anthropic", model="m", status=200, seconds=1.5, usage=usage)
