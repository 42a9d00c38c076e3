"""opencode: headless as `opencode run --format json` with the prompt on stdin, in a conversation as `opencode acp`, or
in its own terminal.

Its whole configuration is in the environment. Files of the repository that run code at the start are disabled in two
steps, because opencode 1.18 reads configuration twice. OPENCODE_DISABLE_PROJECT_CONFIG and --pure stop the first
reader, but a second one imports `.opencode/plugin/*` and the `plugins` of opencode.json in any case. These three names
are therefore moved away while opencode runs, hidden from git, and moved back afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from hiveyard.agents.opencode.feed import OpencodeFeedParser
from hiveyard.agents.opencode.parser import OpencodeParser
from hiveyard.agents.shared import terminal_process
from hiveyard.agents.shared.environment import with_variables
from hiveyard.agents.shared.models import PROVIDERS, full_model
from hiveyard.agents.shared.system_prompt import system_text, with_file
from hiveyard.agents.shared.tool_servers import START_SECONDS
from hiveyard.agents.shared.wording import checked_conversation
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Driver
from hiveyard.core.ports import AgentTerminal, Parser, Turn
from hiveyard.core.tools import ToolServer

# $1 is the directory for the moved files; the rest is the command. Files that an interrupted run left there are moved
# back first. If the agent has created a file of the same name, it is kept instead of the moved one. Signals reach
# opencode through the process group; the shell itself only waits.
_ASIDE = r"""
set -f
aside=$1; shift
names='.opencode opencode.json opencode.jsonc'
own='-c safe.directory=*'
mark() { git $own ls-files -z -- $names 2>/dev/null | git $own update-index -z "$1" --stdin 2>/dev/null; }
back() {
  for name in $names; do
    [ -e "$aside/$name" ] || [ -L "$aside/$name" ] || continue
    if [ ! -e "$name" ] && [ ! -L "$name" ]; then mv -- "$aside/$name" "$name"
    else
      if [ -d "$name" ] && [ ! -L "$name" ]; then cp -an -- "$aside/$name/." "$name/"; fi
      rm -rf -- "$aside/$name"
    fi
  done
  mark --no-skip-worktree
}
mkdir -p -- "$aside" && back
mark --skip-worktree
for name in $names; do
  if [ -e "$name" ] || [ -L "$name" ]; then mv -- "$name" "$aside/$name" || exit 70; fi
done
trap : INT TERM HUP
"$@"; status=$?
back
exit "$status"
"""

# $1 is the parent of opencode's own directories; the rest is the command. Unless a lock file names its plugin library,
# opencode runs npm's installer for half a minute of CPU time to download it, without a network. Its animations redraw
# the screen many times a second, whether a user is attached or not. Users can enable them in its command list; that
# setting is kept. A file that was being written when a machine died may be empty.
_QUIET_START = r"""
config=$1/config/opencode state=$1/state/opencode; shift
mkdir -p -- "$config/node_modules" "$state"
[ -s "$config/package-lock.json" ] ||
  echo '{"packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}' >"$config/package-lock.json"
[ -s "$state/kv.json" ] || echo '{"animations_enabled": false}' >"$state/kv.json"
exec "$@"
"""


class Opencode:
    """The adapter of opencode."""

    name = "opencode"
    program = "opencode"
    protocols: Sequence[str] = PROVIDERS

    def process(self, turn: Turn) -> ProcessSpec:
        turn = replace(turn, ask=False)
        command = Command(argv=_argv(turn), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, stdin=turn.prompt)

    def parser(self) -> Parser:
        return OpencodeParser()

    def version(self) -> Command:
        return Command(argv=("opencode", "--version"))

    # --- live conversation ------------------------------------------------------------------------------------------

    def live_process(self, turn: Turn) -> ProcessSpec:
        argv = ["opencode", "acp", "--cwd", turn.workdir, "--print-logs", "--log-level", "ERROR"]
        command = Command(argv=_wrapped(turn, argv), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, inbox=True)

    def driver(self, turn: Turn) -> Driver:
        from hiveyard.agents.acp.driver import QUIRKS, Acp  # importing its messages takes most of a second

        model = full_model("opencode", turn.model)
        return Acp(turn.workdir, conversation=turn.conversation, model=model, ask=turn.ask, quirks=QUIRKS[self.name])

    # --- terminal ---------------------------------------------------------------------------------------------------

    def agent_terminal(self, turn: Turn) -> AgentTerminal:
        settings = {
            "argv": _wrapped(turn, ("opencode", "--model", full_model("opencode", turn.model))),
            "conversation": None if turn.conversation is None else checked_conversation(turn.conversation),
            "title": turn.name,
        }
        return AgentTerminal(
            terminal=terminal_process.agent_terminal(turn, self.name, settings, _env(turn)),
            feed=terminal_process.feed(turn, self.name),
        )

    def send_prompt(self, turn: Turn) -> Command:
        return Command(argv=terminal_process.argv_of(turn, self.name, "send", {"prompt": turn.prompt}))

    def interrupt(self, turn: Turn) -> Command:
        return Command(argv=terminal_process.argv_of(turn, self.name, "interrupt", {}))

    def feed_parser(self) -> Parser:
        return OpencodeFeedParser()


def _argv(turn: Turn) -> tuple[str, ...]:
    # With a title set, opencode does not request one from the model.
    argv = ["opencode", "run", "--format", "json", "--thinking", "--title", turn.name]
    # Errors are printed on stderr too. While opencode retries, they are the only sign of the reason.
    argv += ["--print-logs", "--log-level", "ERROR", "--model", full_model("opencode", turn.model)]
    if turn.conversation is not None:
        argv += ["--session", checked_conversation(turn.conversation)]
    return _wrapped(turn, argv)


def _wrapped(turn: Turn, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command in scripts that disable code of the repository and opencode's own background work."""
    if not turn.repository_config:
        argv = ("sh", "-c", _ASIDE, "opencode-aside", f"{turn.state}/opencode/aside", *argv, "--pure")
    command = ("sh", "-c", _QUIET_START, "opencode-quiet-start", f"{turn.state}/opencode", *argv)
    return with_file(turn, _system_file(turn), command)


def _system_file(turn: Turn) -> str:
    """Return the file with the text for the system prompt."""
    return f"{turn.state}/opencode/system/{turn.name}.md"


def _env(turn: Turn) -> dict[str, str]:
    env = {
        "OPENCODE_CONFIG_CONTENT": msgspec.json.encode(_config(turn)).decode(),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_SHARE": "1",
        **{
            f"XDG_{kind.upper()}_HOME": f"{turn.state}/opencode/{kind}" for kind in ("data", "state", "config", "cache")
        },
    }
    if not turn.repository_config:
        env["OPENCODE_DISABLE_PROJECT_CONFIG"] = "1"
    return with_variables(turn, env)


def _config(turn: Turn) -> dict[str, object]:
    provider, _, model = full_model("opencode", turn.model).partition("/")
    doors: dict[str, dict[str, object]] = {
        name: {"options": {"baseURL": f"{turn.door_url}/{name}/v1", "apiKey": turn.placeholder}} for name in PROVIDERS
    }
    doors[provider]["models"] = {model: {}}  # so that a name that opencode does not know is accepted
    config: dict[str, object] = {
        "autoupdate": False,
        "share": "disabled",
        "snapshot": False,  # a shadow repository for an undo key that is not used here
        "permission": _permissions(turn) or "allow",
        "enabled_providers": list(PROVIDERS),
        "provider": doors,
    }
    if not turn.repository_config:
        config |= {"lsp": False, "formatter": False}  # both run programs that the repository may contain
    if words := _instructions(turn):
        config["instructions"] = words
    if turn.mcp:
        config["mcp"] = {name: _server(server) for name, server in turn.mcp.items()}
    return config


def _server(server: ToolServer) -> dict[str, object]:
    """Return a tool server as the configuration has it. The configuration is a variable, so it may have secrets."""
    values = {name: value.reveal() for name, value in server.values.items()}
    common = {"enabled": True, "timeout": START_SECONDS * 1000}
    if server.url:
        return {"type": "remote", "url": server.url, "headers": values, "oauth": False, **common}
    return {"type": "local", "command": [server.command, *server.args], "environment": values, **common}


def _permissions(turn: Turn) -> dict[str, str]:
    """Return what each tool may do, if not everything is allowed. Later rules win."""
    usual = "ask" if turn.ask else "allow"
    rules = {"edit": "ask", "bash": "ask"} if turn.ask else {"*": "allow"}
    for name, server in turn.mcp.items():
        rules[f"{name}_*"] = "deny" if server.tools else usual
        rules |= {f"{name}_{tool}": usual for tool in server.tools}
    return rules if turn.ask or turn.mcp else {}


def _instructions(turn: Turn) -> list[str]:
    """Return the files for the system prompt. Those of the repository are only text, so they are loaded after all."""
    own = () if turn.repository_config else ("AGENTS.md", "CLAUDE.md", "CONTEXT.md")
    return [*(f"{turn.workdir}/{name}" for name in own), *([_system_file(turn)] if system_text(turn) else [])]
