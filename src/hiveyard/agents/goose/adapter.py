"""goose: headless as `goose run --output-format stream-json` with the prompt on stdin, or in a conversation as `goose
acp`.

Its whole configuration is in its environment. Files of the repository that run code at the start are plugins
(`.agents/plugins`: hooks and MCP servers), which goose runs without asking. Each of them is disabled by its path.
AGENTS.md, CLAUDE.md and .goosehints are only text."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hiveyard.agents.goose.parser import GooseParser
from hiveyard.agents.shared.environment import with_variables
from hiveyard.agents.shared.models import full_model
from hiveyard.agents.shared.system_prompt import system_text, with_file
from hiveyard.agents.shared.tool_servers import START_SECONDS, NamedServer, renamed, secret_variables, servers
from hiveyard.agents.shared.wording import checked_conversation
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Driver
from hiveyard.core.ports import Parser, Turn

# goose's own extensions. A setting `extensions` replaces its defaults, so they are named again.
_BUILTINS = ("developer", "analyze", "todo", "apps", "extensionmanager", "skills", "summon")
_BUILTIN = {"enabled": True, "type": "platform", "description": "", "bundled": True, "available_tools": []}
_HINTS = (".goosehints", "AGENTS.md", "CLAUDE.md")

# $1: whether plugins of the repository may run. PLUGINS is the environment variable for goose's setting `plugins`. If
# goose cannot parse it, all plugins run. A path that would need quoting therefore stops the script.
_PLUGINS = r"""
if [ "$1" = off ]; then
  off=
  for place in .agents/plugins/* .agents/plugins/.[!.]* .agents/plugins/..?*; do
    [ -d "$place" ] || continue
    path=$(pwd -P)/$place
    case $path in
      *[!A-Za-z0-9\ ._/@+-]*)
        echo "hiveyard: a plugin of the repository that cannot be switched off: rename .agents/plugins/..." >&2
        exit 70 ;;
    esac
    off="$off${off:+,}\"$path\":{\"enabled\":false}"
  done
  export PLUGINS="{$off}"
fi
shift
"""
_LIVE = _PLUGINS + 'exec "$@"\n'
# $2: the working directory, as JSON. $3: the conversation to continue. goose does not report the id of a conversation,
# so the script sets one. goose counts tokens over the whole conversation, so the previous count is printed first.
_BEGIN = (
    _PLUGINS
    + r"""
workdir=$1 name=$2; shift 2
former=null
if [ -n "$name" ]; then
  former=$(goose session list --format json) || exit
  set -- "$@" --resume
else
  name=$(cat /proc/sys/kernel/random/uuid)
fi
printf '{"type":"session","workdir":%s,"name":"%s","former":%s}\n' "$workdir" "$name" "$former"
exec "$@" --name "$name"
"""
)


class Goose:
    """The adapter of goose."""

    name = "goose"
    program = "goose"
    protocols: Sequence[str] = ("anthropic", "openai")

    def process(self, turn: Turn) -> ProcessSpec:
        command = Command(argv=_argv(turn), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, stdin=turn.prompt)

    def parser(self) -> Parser:
        return GooseParser()

    def version(self) -> Command:
        return Command(argv=("goose", "--version"))

    # --- live conversation ------------------------------------------------------------------------------------------

    def live_process(self, turn: Turn) -> ProcessSpec:
        command = ("sh", "-c", _LIVE, "goose-live", _plugins_flag(turn), "goose", "acp")
        argv = with_file(turn, _system_file(turn), command)
        env = _env(turn) | {"GOOSE_MODE": "approve" if turn.ask else "auto"}
        return ProcessSpec(
            name=turn.name, command=Command(argv=argv, cwd=turn.workdir, env=env, name=self.name), inbox=True
        )

    def driver(self, turn: Turn) -> Driver:
        from hiveyard.agents.acp.driver import QUIRKS, Acp  # importing its messages takes most of a second

        return Acp(turn.workdir, conversation=turn.conversation, ask=turn.ask, quirks=QUIRKS[self.name])


def _argv(turn: Turn) -> tuple[str, ...]:
    workdir = msgspec.json.encode(turn.workdir).decode()
    conversation = "" if turn.conversation is None else checked_conversation(turn.conversation)
    # Without --quiet goose prints a banner before the first line.
    argv = ("goose", "run", "--quiet", "--output-format", "stream-json", "--instructions", "-")
    command = ("sh", "-c", _BEGIN, "goose-begin", _plugins_flag(turn), workdir, conversation, *argv)
    return with_file(turn, _system_file(turn), command)


def _plugins_flag(turn: Turn) -> str:
    return "on" if turn.repository_config else "off"


def _system_file(turn: Turn) -> str:
    """Return the file with the text for the system prompt.

    goose looks for hint files of these names next to its own settings, as it does in the repository."""
    return f"{turn.state}/goose/config/goose/{_system_file_name(turn)}"


def _system_file_name(turn: Turn) -> str:
    return f"hiveyard-system-{turn.name}.md"


def _env(turn: Turn) -> dict[str, str]:
    hints = (*_HINTS, _system_file_name(turn)) if system_text(turn) else _HINTS
    provider, _, model = full_model("goose", turn.model).partition("/")
    own = {
        "GOOSE_PROVIDER": provider,
        "GOOSE_MODEL": model,
        "ANTHROPIC_HOST": f"{turn.door_url}/anthropic",
        "ANTHROPIC_API_KEY": turn.placeholder,
        "OPENAI_HOST": f"{turn.door_url}/openai",
        "OPENAI_API_KEY": turn.placeholder,
        "GOOSE_MODE": "auto",
        "GOOSE_DISABLE_KEYRING": "1",
        "GOOSE_DISABLE_SESSION_NAMING": "1",  # it would request a title from a model
        "GOOSE_DISABLE_TOOL_CALL_SUMMARY": "1",  # and a summary of each call
        "GOOSE_TELEMETRY_OFF": "1",
        "CONTEXT_FILE_NAMES": msgspec.json.encode(hints).decode(),
        **{f"XDG_{kind.upper()}_HOME": f"{turn.state}/goose/{kind}" for kind in ("data", "state", "config", "cache")},
    }
    if turn.mcp:
        # The environment variable for goose's setting `extensions`.
        extensions = {name: _BUILTIN | {"name": name} for name in _BUILTINS}
        extensions |= {named.name: _extension(named) for named in servers(turn)}
        own |= {"EXTENSIONS": msgspec.json.encode(extensions).decode(), **secret_variables(turn)}
    return with_variables(turn, own)


def _extension(named: NamedServer) -> dict[str, object]:
    """Return a tool server as goose's settings have it. goose stores them with its conversations, and replaces ${NAME}
    by a variable that is in `env_keys`."""
    name, server, variables = named
    cmd, *args = renamed(named)
    kind: dict[str, object] = {"type": "stdio", "cmd": cmd, "args": args}
    if server.url:
        headers = {key: f"${{{variable}}}" for key, variable in variables.items()}
        kind = {"type": "streamable_http", "uri": server.url, "headers": headers}
    common = {"name": name, "description": "", "timeout": START_SECONDS, "available_tools": server.tools}
    return {"enabled": True, **common, **kind, "env_keys": list(variables.values())}
