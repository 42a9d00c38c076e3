"""The process of a turn: its command, its environment, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiveyard import agents
from hiveyard.agents.command import PROMPT_WORD_LIMIT
from hiveyard.core.commands import Command, ProcessSpec, process_name
from hiveyard.core.errors import BadInput, UnknownAgent
from hiveyard.core.ports import Turn
from hiveyard.kit import process
from tests.agents.real import GIT_ENV, REAL

ONE_PROMPT = tuple(name for name in agents.names() if name != "acp")


def turn(**rest: object) -> Turn:
    parts: dict[str, object] = {
        "name": "turn-1",
        "prompt": "/session/turns/1/prompt.txt",
        "workdir": "/session/repo",
        "state": "/session/state",
        "door_url": "http://127.0.0.1:8377",
        "placeholder": "hv-placeholder",
    }
    return Turn(**{**parts, **rest})  # type: ignore[arg-type]


def test_an_acp_program_is_no_task() -> None:
    with pytest.raises(BadInput, match="runs in a session, not in a task"):
        agents.by_name("acp").process(turn(command="my-agent --acp"))


def test_an_agent_is_found_by_its_name() -> None:
    assert agents.names() == ("claude", "opencode", "codex", "goose", "command", "acp")
    assert [agents.by_name(name).name for name in agents.names()] == list(agents.names())


def test_an_unknown_agent_is_an_error_with_the_known_names() -> None:
    with pytest.raises(UnknownAgent, match="no agent is called 'clod'") as caught:
        agents.by_name("clod")
    assert caught.value.hint == "one of: claude, opencode, codex, goose, command, acp"


@pytest.mark.parametrize("name", ONE_PROMPT)
def test_the_prompt_is_on_stdin_and_all_state_is_in_the_state_directory(name: str) -> None:
    spec = agents.by_name(name).process(turn(command="cat"))
    assert spec.stdin == "/session/turns/1/prompt.txt"
    assert spec.command.cwd == "/session/repo"
    assert spec.name == "turn-1"
    places = [value for key, value in spec.command.env.items() if key.endswith(("_HOME", "CONFIG_DIR"))]
    assert all(place.startswith("/session/state/") for place in places)


@pytest.mark.parametrize("name", ONE_PROMPT)
def test_a_turn_of_one_prompt_asks_for_no_permission(name: str) -> None:
    process = agents.by_name(name).process
    assert process(turn(command="cat", ask=True)) == process(turn(command="cat"))


@pytest.mark.parametrize("name", ONE_PROMPT)
def test_the_environment_has_only_the_placeholder_and_the_door(name: str) -> None:
    agent = agents.by_name(name)
    spec = agent.process(turn(command="cat"))
    said = json.dumps([spec.command.words(), dict(spec.command.env)])
    for vendor in agent.protocols or ("anthropic", "openai"):
        assert f"http://127.0.0.1:8377/{vendor}" in said
    assert "hv-placeholder" not in json.dumps(spec.command.words())
    assert said.count("http") == said.count("http://127.0.0.1:8377")


def test_claude_ignores_code_of_the_repository_and_reads_its_instructions() -> None:
    spec = agents.by_name("claude").process(turn())
    words = spec.command.words()
    assert words[words.index("--setting-sources") + 1] == "user"
    assert "--strict-mcp-config" in words
    assert words[words.index("--add-dir") + 1] == "/session/repo"
    trusted = agents.by_name("claude").process(turn(repository_config=True)).command
    assert not {"--setting-sources", "--strict-mcp-config", "--add-dir"} & set(trusted.words())


def test_claude_takes_a_model_and_a_conversation() -> None:
    words = agents.by_name("claude").process(turn(model="opus", conversation="4e22-ab")).command.words()
    assert words[-4:] == ("--model", "opus", "--resume", "4e22-ab")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("part", ["model", "conversation"])
@pytest.mark.parametrize("value", ["--dangerous", "", "a b", "a\nb", "x" * 300])
def test_values_that_look_like_options_are_refused(name: str, part: str, value: str) -> None:
    with pytest.raises(BadInput):
        agents.by_name(name).process(turn(**{part: value}))


def config(**rest: object) -> dict[str, object]:
    spec = agents.by_name("opencode").process(turn(**rest))
    found = json.loads(spec.command.env["OPENCODE_CONFIG_CONTENT"])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("model", "full"),
    [
        (None, "anthropic/claude-sonnet-5"),
        ("claude-opus-5-5", "anthropic/claude-opus-5-5"),
        ("gpt-5.5", "openai/gpt-5.5"),
        ("o3", "openai/o3"),
        ("openai/our-own", "openai/our-own"),
        ("anthropic/a/b", "anthropic/a/b"),
    ],
)
def test_opencode_finds_the_door_of_a_model(model: str | None, full: str) -> None:
    words = agents.by_name("opencode").process(turn(model=model)).command.words()
    assert words[words.index("--model") + 1] == full
    provider, _, name = full.partition("/")
    doors = config(model=model)["provider"]
    assert isinstance(doors, dict)
    assert doors[provider]["models"] == {name: {}}
    assert doors["openai"]["options"]["baseURL"] == "http://127.0.0.1:8377/openai/v1"
    assert doors["anthropic"]["options"]["baseURL"] == "http://127.0.0.1:8377/anthropic/v1"


def test_opencode_refuses_a_provider_without_a_door() -> None:
    with pytest.raises(BadInput, match="not of 'google'"):
        agents.by_name("opencode").process(turn(model="google/gemini"))


def test_opencode_runs_no_programs_of_the_repository_unless_it_is_trusted() -> None:
    assert (config()["lsp"], config()["formatter"]) == (False, False)
    assert config()["instructions"] == [f"/session/repo/{name}.md" for name in ("AGENTS", "CLAUDE", "CONTEXT")]
    trusted = agents.by_name("opencode").process(turn(repository_config=True)).command
    assert not {"opencode-aside", "--pure"} & set(trusted.words())
    assert "OPENCODE_DISABLE_PROJECT_CONFIG" not in trusted.env
    assert not {"lsp", "formatter", "instructions"} & set(config(repository_config=True))


@pytest.mark.parametrize(
    ("agent", "name", "process"),
    [
        ("claude", "tests", "cc-tests"),
        ("opencode", "v1.2_b-c", "oc-v1.2_b-c"),
        ("codex", "x", "cx-x"),
        ("goose", "x", "gs-x"),
        ("command", "x", "command-x"),
        ("claude", "Fix the tests, étienne!", "cc-Fix-the-tests-etienne-bba0b2e8"),
        ("claude", "../../etc", "cc-etc-74ccf3c5"),
        ("claude", "", "cc-e3b0c442"),
    ],
)
def test_a_process_has_a_safe_name_with_its_agent(agent: str, name: str, process: str) -> None:
    assert process_name(agent, name) == process


@given(st.sets(st.text(max_size=300), min_size=2, max_size=2), st.one_of(st.sampled_from(REAL), st.text(max_size=300)))
def test_any_text_makes_a_unique_process_name(names: set[str], agent: str) -> None:
    made = {process_name(agent, name) for name in names}
    assert len(made) == 2
    for name in made:
        ProcessSpec(name=name, command=Command(argv=("true",)))


# --- what is added to a system prompt, with a program in the agent's place --------------------------------------------

MORE = "Say \"ahoy\" & 'aye'.\n\n$(touch pwned) `id` \\ {{prompt}} ü😀\n--model x"


async def told(tmp_path: Path, name: str, spec: ProcessSpec) -> str:
    """All that a program finds of it: its words, its settings, and the files that they name."""
    program = tmp_path / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; env\n')
    program.chmod(0o755)
    env = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), **spec.command.env}
    done = await process.run(spec.command.words(), cwd=Path(spec.command.cwd or ""), env=env)
    assert done.status == 0, done.stderr
    said = done.stdout.decode()
    files = [Path(found) for found in re.findall(r"(?<![\w.])/[\w/.-]+\.md\b", said)]
    hints = [
        found
        for name in re.findall(r"[\w.-]+\.md", said)
        for found in tmp_path.glob(f"state/goose/config/goose/{name}")
    ]
    return said + "".join(file.read_text() for file in {*files, *hints} if file.is_file())


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["process", "live_process"])
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", REAL)
async def test_the_system_prompt_text_of_a_turn_is_passed_on(
    tmp_path: Path, name: str, trusted: bool, kind: str
) -> None:
    (tmp_path / "AGENTS.md").write_text("words of the repository")
    place = {"workdir": str(tmp_path), "state": str(tmp_path / "state")}
    make = getattr(agents.by_name(name), kind)
    for _ in range(2):
        said = await told(tmp_path, name, make(turn(system=MORE, repository_config=trusted, **place)))
        assert (json.dumps(MORE, ensure_ascii=False) if name == "codex" else MORE) in said
        if name == "claude":
            assert said.count("--append-system-prompt-file") == 1, "it takes one"
            assert said.count("words of the repository") == (0 if trusted else 1), "which it reads by itself, or not"
    assert not (tmp_path / "pwned").exists()
    assert MORE not in await told(tmp_path, name, make(turn(name="turn-2", repository_config=trusted, **place)))


@pytest.mark.parametrize("name", ONE_PROMPT)
@pytest.mark.parametrize("text", ["a\0b", "\x1b[31m", "\ud800", "x" * 60_001, "ü" * 30_001])
def test_an_invalid_system_prompt_text_is_refused(name: str, text: str) -> None:
    with pytest.raises(BadInput, match="system prompt"):
        agents.by_name(name).process(turn(system=text, command="cat"))


@pytest.mark.parametrize("name", REAL)
def test_the_longest_system_prompt_text_fits_into_a_quoted_word(name: str) -> None:
    words = agents.by_name(name).process(turn(system='"' * 60_000)).command.words()
    assert max(map(len, words)) < 128 << 10


# --- what opencode may not see, with a program in its place -----------------------------------------------------------


async def opencode(tmp_path: Path, script: str, *, trusted: bool = False) -> process.Completed:
    """A turn of opencode in the repository `repo`, with a shell script as the program."""
    program = tmp_path / "bin" / "opencode"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    asked = turn(workdir=str(tmp_path / "repo"), state=str(tmp_path / "state"), repository_config=trusted)
    spec = agents.by_name("opencode").process(asked)
    env = {**GIT_ENV, "PATH": f"{program.parent}:/usr/bin:/bin"}
    return await process.run(spec.command.words(), stdin=b"the prompt", cwd=tmp_path / "repo", env=env)


async def git(tmp_path: Path, *words: str) -> str:
    done = await process.run(["git", *words], cwd=tmp_path / "repo", env=GIT_ENV)
    assert done.ok, done.error_output()
    return done.stdout.decode()


@pytest.fixture
async def repo(tmp_path: Path) -> Path:
    """A repository with all that opencode would read: tracked, changed since, and untracked."""
    place = tmp_path / "repo"
    (place / ".opencode" / "plugin").mkdir(parents=True)
    (place / ".opencode" / "plugin" / "evil.js").write_text("evil")
    (place / "opencode.json").write_text("{}")
    await git(tmp_path, "init", "-q")
    await git(tmp_path, "add", "-A")
    await git(tmp_path, "commit", "-qm", "start")
    (place / "opencode.json").write_text('{"changed": 1}')
    (place / "opencode.jsonc").symlink_to("nowhere")
    return place


@pytest.mark.anyio
async def test_configuration_is_hidden_from_opencode_and_not_missing_for_git(tmp_path: Path, repo: Path) -> None:
    before = await git(tmp_path, "status", "--porcelain")
    done = await opencode(tmp_path, "cat; ls -A; git status --porcelain; git add -A; exit 5")
    assert done.stdout == b"the prompt.git\n"
    assert done.status == 5
    assert await git(tmp_path, "status", "--porcelain") == before == " M opencode.json\n?? opencode.jsonc\n"
    assert (repo / ".opencode" / "plugin" / "evil.js").read_text() == "evil"
    assert (repo / "opencode.json").read_text() == '{"changed": 1}'
    assert (repo / "opencode.jsonc").is_symlink()


@pytest.mark.anyio
async def test_a_file_that_the_agent_recreated_replaces_the_moved_one(tmp_path: Path, repo: Path) -> None:
    await opencode(tmp_path, "mkdir -p .opencode/agent; echo new > .opencode/agent/x.md; echo new > opencode.json")
    assert (repo / "opencode.json").read_text() == "new\n"
    assert (repo / ".opencode" / "agent" / "x.md").read_text() == "new\n"
    assert (repo / ".opencode" / "plugin" / "evil.js").read_text() == "evil"
    assert not list((tmp_path / "state" / "opencode" / "aside").iterdir())


@pytest.mark.anyio
async def test_configuration_of_a_trusted_repository_stays_in_place(tmp_path: Path, repo: Path) -> None:
    done = await opencode(tmp_path, "ls -A", trusted=True)
    assert {".opencode", "opencode.json", "opencode.jsonc"} <= set(done.stdout.decode().split())


@pytest.mark.anyio
@pytest.mark.parametrize("trusted", [False, True])
async def test_opencode_downloads_nothing_and_has_no_animations(tmp_path: Path, repo: Path, *, trusted: bool) -> None:
    own = tmp_path / "state" / "opencode"
    files = f"{own}/config/opencode/package-lock.json {own}/state/opencode/kv.json"
    done = await opencode(tmp_path, f"cat {files}; ls -d {own}/config/opencode/node_modules; exit 5", trusted=trusted)
    lock, kv, modules = done.stdout.decode().splitlines()
    assert done.status == 5
    assert json.loads(lock)["packages"][""]["dependencies"] == {"@opencode-ai/plugin": "*"}
    assert json.loads(kv) == {"animations_enabled": False}
    assert modules.endswith("node_modules")


@pytest.mark.anyio
async def test_empty_files_of_opencode_are_written_again(tmp_path: Path, repo: Path) -> None:
    own = tmp_path / "state" / "opencode"
    kept = [own / "config" / "opencode" / "package-lock.json", own / "state" / "opencode" / "kv.json"]
    await opencode(tmp_path, "true")
    expected = [file.read_bytes() for file in kept]
    for file in kept:
        file.write_bytes(b"")
    await opencode(tmp_path, "true")
    assert [file.read_bytes() for file in kept] == expected


@pytest.mark.anyio
async def test_the_users_setting_of_animations_is_kept(tmp_path: Path, repo: Path) -> None:
    await opencode(tmp_path, "true")
    kept = tmp_path / "state" / "opencode" / "state" / "opencode" / "kv.json"
    kept.write_text('{"animations_enabled":true}')
    done = await opencode(tmp_path, f"cat {kept}")
    assert done.stdout == b'{"animations_enabled":true}'


# --- any command line, run for real ---------------------------------------------------------------------------------


class Ran:
    """A command line that was run with a prompt."""

    def __init__(self, spec: ProcessSpec, done: process.Completed) -> None:
        self.out, self.err, self.status = done.stdout, done.stderr.decode(), done.status
        parser = agents.by_name("command").parser()
        for line in done.stdout.splitlines():
            parser.feed(line)
        self.verdict = parser.verdict(done.status, self.err)


async def run(tmp_path: Path, line: str, prompt: str) -> Ran:
    file = tmp_path / "a 'prompt' $file.txt"
    file.write_text(prompt, encoding="utf-8")
    spec = agents.by_name("command").process(turn(command=line, prompt=str(file), workdir=str(tmp_path)))
    env = {"PATH": "/usr/bin:/bin", **spec.command.env}
    return Ran(spec, await process.run(spec.command.words(), stdin=file.read_bytes(), cwd=tmp_path, env=env))


HARD = "a 'b' \"c\" $HOME `touch pwned` $(touch pwned) ; touch pwned\n\\n {{prompt}} {{prompt_file}} é🐝\t* \x1b[31m"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "line",
    [
        "printf %s {{prompt}}",
        "cat {{prompt_file}}",
        "cat",
        "printf %s {{prompt}} | cat",
        'x={{prompt}}; printf %s "$x"',
    ],
)
async def test_a_prompt_reaches_any_command_intact(tmp_path: Path, line: str) -> None:
    ran = await run(tmp_path, line, HARD)
    assert ran.out.decode() == HARD
    assert ran.verdict.ok
    assert not (tmp_path / "pwned").exists()


@pytest.mark.anyio
async def test_a_prompt_of_a_mebibyte_goes_by_file_and_by_stdin(tmp_path: Path) -> None:
    prompt = "0123456789abcde\n" * (1 << 16)
    for line in ("cat {{prompt_file}}", "cat"):
        assert (await run(tmp_path, line, prompt)).out.decode() == prompt


@pytest.mark.anyio
async def test_the_longest_prompt_that_fits_into_a_word_arrives_and_one_more_byte_is_refused(tmp_path: Path) -> None:
    line = "/usr/bin/printf %s {{prompt}}"
    assert len((await run(tmp_path, line, "x" * PROMPT_WORD_LIMIT)).out) == PROMPT_WORD_LIMIT
    over = await run(tmp_path, line, "x" * (PROMPT_WORD_LIMIT + 1))
    assert over.verdict.code == "bad_input"
    assert "use {{prompt_file}}" in over.verdict.reason
    assert over.out == b""


@pytest.mark.anyio
async def test_the_prompt_is_in_no_environment(tmp_path: Path) -> None:
    ran = await run(tmp_path, "printf %s {{prompt}} > said; env", "hidden words")
    assert b"hidden words" not in ran.out
    assert (tmp_path / "said").read_text() == "hidden words"


@pytest.mark.anyio
async def test_the_exit_code_of_a_command_is_kept(tmp_path: Path) -> None:
    ran = await run(tmp_path, "echo working; echo {{prompt}} >&2; exit 7", "words")
    assert ran.status == 7
    assert ran.verdict.reason == "the command ended with exit code 7: words"


@pytest.mark.parametrize("line", [None, "", "  \n"])
def test_the_command_agent_needs_a_command_line(line: str | None) -> None:
    with pytest.raises(BadInput, match="needs a command line"):
        agents.by_name("command").process(turn(command=line))


@pytest.mark.parametrize("line", ["x '{{prompt}}'", 'x "{{prompt_file}}"', 'x "a \\" {{prompt}}"', "it's {{prompt}}"])
def test_a_placeholder_inside_quotes_is_refused(line: str) -> None:
    with pytest.raises(BadInput, match="are quoted already"):
        agents.by_name("command").process(turn(command=line))


@pytest.mark.parametrize("line", ["x 'a' {{prompt}}", "x \\' {{prompt}}", 'x "it\'s" {{prompt}}', "x --p={{prompt}}"])
def test_a_placeholder_beside_quotes_is_fine(line: str) -> None:
    agents.by_name("command").process(turn(command=line))
