"""Record the output of the real agent programs, and the events that the parsers make of it.

    python -m tests.transcripts.record run [AGENT [CASE ...]]     # needs the programs and root (network namespaces)
    python -m tests.transcripts.record expect                     # writes the .expected files anew: read the diff

Each case leaves CASE.jsonl (stdout), CASE.exit, CASE.stderr when there is any, and CASE.expected.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import msgspec

from hiveyard import agents
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.events import AgentEvent
from hiveyard.core.ports import Verdict
from hiveyard.testing.script import Call, File, Script, Step, Tokens, cut, refuse, say, shell
from tests.agents.real import Finished, HostYard, find_programs, host_yard, understand

HERE = Path(__file__).parent
VERSIONS = {"claude": "2.1.329", "opencode": "1.18.33", "codex": "0.169.0", "goose": "1.50.0"}
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x1b[0m \u202egnp.exe\u202c \x07bell \x9b2J <script>alert(1)</script> \U0001f41d"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A script for the model, and how the program is run. `repo` is put where a step says `REPO`."""

    script: Script
    prompt: str = "do it"
    tamper: Callable[[ProcessSpec], ProcessSpec] = lambda spec: spec
    env: Mapping[str, str] = field(default_factory=dict)
    play: Mapping[str, Any] = field(default_factory=dict)


def _write(path: str, content: str) -> Call:
    return Call(write=File(path=f"REPO/{path}", content=content))


def _env(**changes: str | None) -> Callable[[ProcessSpec], ProcessSpec]:
    """The same process with variables set, or without those that are None."""

    def change(spec: ProcessSpec) -> ProcessSpec:
        env = {name: value for name, value in {**spec.command.env, **changes}.items() if value is not None}
        return replace(spec, command=replace(spec.command, env=env))

    return change


def _words(old: str, new: str) -> Callable[[ProcessSpec], ProcessSpec]:
    """The same process with a text in its words and its environment replaced."""

    def change(spec: ProcessSpec) -> ProcessSpec:
        argv = tuple(word.replace(old, new) for word in spec.command.words())
        env = {name: value.replace(old, new) for name, value in spec.command.env.items()}
        return replace(spec, command=Command(argv=argv, cwd=spec.command.cwd, env=env))

    return change


TOO_LONG = "prompt is too long: 250000 tokens > 200000 maximum"
_LONG = Step(text="Listening.", calls=[Call(shell="tail -f /dev/null")])
COMMON: Mapping[str, Case] = {
    "cut-always": Case(script=[cut()], play={"stop_after": 100}),
    "cut-once": Case(script=[shell("echo before"), cut(times=1, text="After all, it is done.")]),
    "empty": Case(script=[say("")]),
    "hostile-text": Case(
        script=[
            Step(text=HOSTILE, thinking=HOSTILE, calls=[Call(shell=r"printf '\033[2J\033]0;x\007 \000\377 end\n'")]),
            say(HOSTILE),
        ]
    ),
    "interrupted": Case(script=[_LONG, say("Done.")], play={"stop_after": 8}),
    "max-output": Case(script=[Step(text="This goes on and", stop="length")] * 6),
    "parallel": Case(
        script=[
            Step(calls=[Call(shell="echo one"), Call(shell="echo two"), _write("b.txt", "no newline")]),
            say("Both."),
        ]
    ),
    "refused-400": Case(script=[refuse(400, message="prompt is too strange")]),
    "refused-401": Case(script=[refuse(401, message="invalid x-api-key")], play={"stop_after": 20}),
    "refused-429": Case(script=[refuse(429, headers={"retry-after": "1"})], play={"stop_after": 15}),
    "refused-500": Case(script=[refuse(500)], play={"stop_after": 100}),
    "refused-once": Case(script=[refuse(529, times=1)]),
    "tool-error": Case(
        script=[
            Step(text="I try.", calls=[Call(shell="echo out; echo err >&2; exit 3")]),
            say("It failed."),
        ]
    ),
}
CLAUDE: Mapping[str, Case] = {
    **COMMON,
    "edit": Case(
        script=[
            Step(thinking="A small fix.", text="I look first.", calls=[Call(shell="cat README.md")]),
            Step(calls=[_write("src/a.py", "x = 1\ny = 2\n")]),
            Step(
                calls=[
                    Call(
                        tool="Edit", input={"file_path": "REPO/src/a.py", "old_string": "x = 1", "new_string": "x = 3"}
                    )
                ]
            ),
            say("Fixed."),
        ]
    ),
    "bad-tool-input": Case(
        script=[
            Step(calls=[Call(tool="Read", input={"file_path": "REPO/nope"})]),
            Step(calls=[Call(tool="NoSuchTool", input={"a": 1})]),
            Step(calls=[Call(tool="Edit", input={"wrong": True})]),
            say("None of it worked."),
        ]
    ),
    "interrupted": Case(script=[_LONG, say("Done.")], play={"signal_at": (b"tail -f", signal.SIGINT)}),
    "interrupted-streaming": Case(script=[Step(text="Slow " * 100, chunk_delay=0.3)], play={"stop_after": 4}),
    "terminated": Case(script=[_LONG, say("Done.")], play={"signal_at": (b"tail -f", signal.SIGTERM)}),
    "no-key": Case(script=[say("never said")], tamper=_env(ANTHROPIC_API_KEY=None)),
    "permission-denied": Case(
        script=[Step(text="I write.", calls=[_write("c.txt", "c\n")]), say("I was not allowed to.")],
        tamper=_words("bypassPermissions", "manual"),
    ),
    "subscription-limit": Case(
        script=[
            refuse(
                429,
                message="This request would exceed your account's rate limit.",
                headers={
                    "anthropic-ratelimit-unified-status": "rejected",
                    "anthropic-ratelimit-unified-reset": "1795250000",
                    "anthropic-ratelimit-unified-representative-claim": "five_hour",
                    "anthropic-ratelimit-unified-5h-status": "rejected",
                    "anthropic-ratelimit-unified-5h-reset": "1795250000",
                    "anthropic-ratelimit-unified-5h-utilization": "1",
                },
            )
        ],
        tamper=_env(ANTHROPIC_API_KEY=None, CLAUDE_CODE_OAUTH_TOKEN="sk-ant-oat01-Zq8TestSecret"),
    ),
    "unknown-conversation": Case(
        script=[say("never said")], play={"conversation": "00000000-0000-4000-8000-000000000000"}
    ),
}
OPENCODE: Mapping[str, Case] = {
    **COMMON,
    "edit": Case(
        script=[
            Step(thinking="A small fix.", text="I look first.", calls=[Call(shell="cat README.md")]),
            Step(calls=[_write("src/a.py", "x = 1\ny = 2\n")]),
            Step(
                calls=[
                    Call(tool="edit", input={"filePath": "REPO/src/a.py", "oldString": "x = 1", "newString": "x = 3"})
                ]
            ),
            say("Fixed."),
        ]
    ),
    "edit-openai": Case(
        script=[
            Step(
                thinking="A patch.",
                calls=[
                    Call(
                        tool="apply_patch",
                        input={
                            "patchText": "*** Begin Patch\n*** Add File: b.py\n+hello\n*** Update File: README.md\n@@\n"
                            "-A sample.\n+A better sample.\n*** End Patch"
                        },
                    )
                ],
            ),
            say("Patched."),
        ],
        play={"model": "gpt-5.5"},
    ),
    "bad-tool-input": Case(
        script=[
            Step(calls=[Call(tool="read", input={"filePath": "REPO/nope"})]),
            Step(calls=[Call(tool="nosuchtool", input={"a": 1})]),
            Step(calls=[Call(tool="edit", input={"wrong": True})]),
            say("None of it worked."),
        ]
    ),
    "compacted": Case(script=[shell("echo before"), refuse(400, times=1, message=TOO_LONG)]),
    "compacted-in-vain": Case(  # it would go on for ever
        script=[refuse(400, message=TOO_LONG)], play={"signal_at": (b"compaction_continue", signal.SIGINT)}
    ),
    "terminated": Case(script=[_LONG, say("Done.")], play={"stop_after": 8, "stop_with": signal.SIGTERM}),
    "terminated-in-retry": Case(
        script=[refuse(500, message="Internal server error")], play={"stop_after": 12, "stop_with": signal.SIGTERM}
    ),
    "no-key": Case(script=[say("never said")], tamper=_words("hv-placeholder", ""), play={"key": "the real one"}),
    "permission-denied": Case(
        script=[Step(text="I write.", calls=[_write("c.txt", "c\n")]), say("I was not allowed to.")],
        tamper=_words('"permission":"allow"', '"permission":{"edit":"ask"}'),
    ),
    "unknown-conversation": Case(script=[say("never said")], play={"conversation": "ses_0000000000000000000000000"}),
    "unknown-model": Case(
        script=[say("never said")], tamper=_words('"models":', '"nothing":'), play={"model": "anthropic/none-such"}
    ),
}
_PATCH = (
    "*** Begin Patch\n*** Add File: b.py\n+hello\n*** Update File: README.md\n@@\n-A sample.\n+A better sample.\n"
    "*** End Patch"
)
_UNREACHABLE = Case(script=[say("never said")], tamper=_words(":8377", ":1"), play={"stop_after": 100})
CODEX: Mapping[str, Case] = {
    **COMMON,
    "edit": Case(
        script=[
            Step(thinking="A small fix.", text="I look first.", calls=[Call(shell="cat README.md")]),
            Step(calls=[Call(tool="apply_patch", input={"input": _PATCH})]),
            say("Fixed."),
        ],
        play={"model": "gpt-5.5"},
    ),
    "bad-tool-input": Case(
        script=[
            Step(calls=[Call(tool="nosuchtool", input={"a": 1})]),
            Step(calls=[Call(tool="exec_command", input={"wrong": True})]),
            Step(calls=[Call(tool="apply_patch", input={"input": "no patch at all"})]),
            Step(calls=[Call(tool="apply_patch", input={"input": _PATCH.replace("A sample.", "Something else.")})]),
            say("None of it worked."),
        ],
        play={"model": "gpt-5.5"},
    ),
    "bad-program": Case(
        script=[Step(calls=[Call(tool="exec", input={"input": "await tools.nothing()"})]), say("It did not work.")]
    ),
    "terminated": Case(script=[_LONG, say("Done.")], play={"signal_at": (b"tail -f", signal.SIGTERM)}),
    "terminated-in-retry": Case(script=[refuse(500)], play={"signal_at": (b"Reconnecting", signal.SIGTERM)}),
    "no-key": Case(script=[say("never said")], tamper=_env(HIVEYARD_PLACEHOLDER=None)),
    "unknown-conversation": Case(
        script=[say("never said")], play={"conversation": "00000000-0000-4000-8000-000000000000"}
    ),
    "unknown-model": Case(script=[say("All the same.")], play={"model": "gpt-of-tomorrow"}),
    "unreachable": _UNREACHABLE,
}
GOOSE: Mapping[str, Case] = {
    **COMMON,
    "edit": Case(
        script=[
            Step(thinking="A small fix.", text="I look first.", calls=[Call(shell="cat README.md")]),
            Step(calls=[_write("src/a.py", "x = 1\ny = 2\n")]),
            Step(
                calls=[Call(tool="edit", input={"path": "REPO/src/a.py", "before": "x = 1", "after": "x = 3"})],
                usage=Tokens(input=200, output=40, cache_read=3000, cache_write=500),
            ),
            Step(calls=[_write("README.md", "A better sample.\n")]),
            say("Fixed."),
        ]
    ),
    "edit-openai": Case(
        script=[
            Step(
                thinking="A file.",
                calls=[_write("b.py", "hello\n")],
                usage=Tokens(input=200, output=40, cache_read=3000),
            ),
            say("Written."),
        ],
        play={"model": "gpt-5.5"},
    ),
    "bad-tool-input": Case(
        script=[
            Step(calls=[Call(tool="read_image", input={"source": "REPO/nope"})]),
            Step(calls=[Call(tool="nosuchtool", input={"a": 1})]),
            Step(calls=[Call(tool="edit", input={"wrong": True})]),
            say("None of it worked."),
        ]
    ),
    "compacted": Case(
        script=[
            shell("echo before"),
            refuse(400, times=1, message=TOO_LONG),
            say("Done."),
        ]
    ),
    "refused-401-openai": Case(script=[refuse(401, message="invalid x-api-key")], play={"model": "gpt-5.5"}),
    "refused-500-openai": Case(script=[refuse(500)], play={"model": "openai/of-tomorrow", "stop_after": 60}),
    "terminated": Case(script=[_LONG, say("Done.")], play={"signal_at": (b"tail -f", signal.SIGTERM)}),
    "no-key": Case(script=[say("never said")], tamper=_env(ANTHROPIC_API_KEY=None)),
    "permission-denied": Case(
        script=[Step(text="I write.", calls=[_write("c.txt", "c\n")]), say("I was not allowed to.")],
        tamper=_env(GOOSE_MODE="approve"),
    ),
    "unknown-conversation": Case(
        script=[say("never said")], play={"conversation": "00000000-0000-4000-8000-000000000000"}
    ),
    "unreachable": _UNREACHABLE,
}
CASES: Mapping[str, Mapping[str, Case]] = {"claude": CLAUDE, "opencode": OPENCODE, "codex": CODEX, "goose": GOOSE}


def directory(agent: str) -> Path:
    return HERE / f"{agent}-{VERSIONS[agent]}"


def transcript(agent: str, case: str) -> Finished:
    """A stored transcript."""
    base = directory(agent) / case
    stderr = base.with_suffix(".stderr")
    return Finished(
        base.with_suffix(".jsonl").read_bytes(),
        stderr.read_bytes() if stderr.exists() else b"",
        int(base.with_suffix(".exit").read_text()),
    )


def describe(events: object, verdict: Verdict) -> str:
    """Events and verdict, one JSON line each: to be read and compared."""
    assert isinstance(events, list)
    lines = [msgspec.json.encode(event, order="sorted").decode() for event in events]
    return "".join(f"{line}\n" for line in [*lines, msgspec.json.encode({"verdict": verdict._asdict()}).decode()])


def expect(agent: str, case: str) -> str:
    events, verdict = understand(agents.by_name(agent), transcript(agent, case))
    known: list[AgentEvent] = list(events)
    return describe(known, verdict)


async def run(agent: str, name: str, case: Case) -> None:
    with tempfile.TemporaryDirectory() as root:
        async with host_yard(Path(root), find_programs()) as yard:
            yard.tamper = case.tamper
            yard.env = {"CLAUDE_CODE_MAX_RETRIES": "2", **case.env} if agent == "claude" else dict(case.env)
            tail = dict(case.play)
            played = await yard.play(agent, _placed(case.script, yard), case.prompt, **tail)
        _store(agent, name, played.finished, root)
        print(agent, name, played.finished.exit_code, played.verdict, flush=True)


def _placed(script: Script, yard: HostYard) -> Script:
    data = msgspec.json.encode(list(script)).replace(b"REPO", str(yard.repo).encode())
    return msgspec.json.decode(data, type=list[Step])


def _store(agent: str, name: str, finished: Finished, root: str) -> None:
    directory(agent).mkdir(exist_ok=True)
    base = directory(agent) / name
    base.with_suffix(".jsonl").write_bytes(
        b"".join(_slim(line) for line in _neutral(finished.stdout, root).splitlines(True))
    )
    base.with_suffix(".exit").write_text(f"{finished.exit_code}\n")
    stderr = base.with_suffix(".stderr")
    stderr.unlink(missing_ok=True)
    if finished.stderr.strip():
        stderr.write_bytes(_neutral(finished.stderr, root))


def _neutral(data: bytes, root: str) -> bytes:
    """Without this machine's paths; a project's directory is also named by its path with dashes."""
    dashed = re.sub(r"[^A-Za-z0-9]", "-", root)
    for old, new in ((root, "/session"), (dashed, "-session")):
        data = data.replace(old.encode(), new.encode())
    return re.sub(rb"/tmp/cc-socks/\d+", b"/tmp/cc-socks/1", data)


_LISTS = ("tools", "slash_commands", "terminal_slash_commands", "agents", "skills", "plugins", "capabilities")


def _slim(line: bytes) -> bytes:
    """Claude's first line lists all it can do in 3 KB: three of each are enough here."""
    if b'"subtype":"init"' not in line:
        return line
    said = msgspec.json.decode(line)
    for key in _LISTS:
        said[key] = said.get(key, [])[:3]
    return msgspec.json.encode(said) + b"\n"


async def _run_all(agent: str | None, names: list[str]) -> None:
    for kind in [agent] if agent else list(CASES):
        for name in names or list(CASES[kind]):
            await run(kind, name, CASES[kind][name])


def _expect_all() -> None:
    for agent, cases in CASES.items():
        for name in cases:
            (directory(agent) / f"{name}.expected").write_text(expect(agent, name), encoding="utf-8")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:] or ["help"]
    if verb == "run":
        anyio.run(_run_all, rest[0] if rest else None, rest[1:])
    elif verb == "expect":
        _expect_all()
    else:
        sys.exit(__doc__)
