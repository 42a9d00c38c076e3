"""The bodies of requests and answers, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import BaseModel, ConfigDict

from hiveyard.core import machines
from hiveyard.engine.report import Report


class TaskRequest(BaseModel):
    """A job for an agent. What is absent is taken from the settings. Paths are absolute and the host's."""

    model_config = ConfigDict(extra="forbid")

    repo: str
    prompt: str
    agent: str | None = None
    command: str | None = None
    model: str | None = None
    provider: str | None = None
    image: str | None = None
    branch: str | None = None
    base: str | None = None
    include_dirty: bool = False
    repository_config: bool = False
    network: Literal["door", "open"] = "door"
    timeout: float | None = None
    budget_usd: float | None = None
    memory_mib: int | None = None
    cpus: int | None = None
    disk_gib: int | None = None
    record: str | None = None
    tape: str | None = None
    keep: bool = False


class Error(BaseModel):
    """What went wrong: a stable code, one sentence, and what to type."""

    code: str
    message: str
    hint: str = ""


class Problem(BaseModel):
    """The body of every answer that is not a success."""

    error: Error


class Diffstat(BaseModel):
    files: int
    insertions: int
    deletions: int


class Usage(BaseModel):
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: float | None
    requests: int


class Task(BaseModel):
    """A task as it stands. `exit_code` is null while it runs."""

    id: str
    slug: str
    status: Literal["pending", "assigned", "running", "completed", "failed", "cancelled"]
    exit_code: int | None
    repo: str
    branch: str | None
    base: str | None
    commits: int
    diffstat: Diffstat
    patch: str | None
    provider: str | None
    tier: str | None
    agent: str
    program: str | None
    model: str | None
    usage: Usage
    timings: dict[str, float]
    error: Error | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    prompt: str


class Source(BaseModel):
    """Where a task's result lies on the host, for `hv apply` and `hv diff`."""

    repo: str
    origin: str
    branch: str
    base: str
    head: str | None
    patch: str | None


class Image(BaseModel):
    id: str
    name: str
    size: int
    created_at: float
    programs: dict[str, str]


class Version(BaseModel):
    """The daemon: its version, process id, and how many tasks it is working on."""

    version: str
    pid: int
    running: int


class Check(BaseModel):
    """One need of Hiveyard on this host: whether it is met, what was found, and what to do."""

    name: str
    ok: bool
    needed: bool
    detail: str
    fix: str


class Removed(BaseModel):
    id: str


def task(report: Report) -> Task:
    return Task(**msgspec.to_builtins(report))


def image(found: machines.Image) -> Image:
    return Image(
        id=found.id, name=found.name, size=found.size, created_at=found.created_at, programs=dict(found.programs)
    )
