"""goose: headless as `goose run --output-format stream-json` with the prompt on stdin, or in a conversation as
`goose acp`; its whole configuration is in its environment.

What the repository brings that would run code on start are plugins (`.agents/plugins`: hooks and MCP servers), which
goose runs unasked; each is switched off by the path it stands at. AGENTS.md, CLAUDE.md and .goosehints are only words.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hiveyard.agents.goose.parser import GooseParser
from hiveyard.agents.shared.models import full_model
from hiveyard.agents.shared.system_prompt import added, writing
from hiveyard.agents.shared.wording import checked_conversation
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Driver
from hiveyard.core.ports import Parser, Turn

_HINTS = (".goosehints", "AGENTS.md", "CLAUDE.md")

# $1: whether plugins of the repository may run. PLUGINS is what its setting `plugins` is called in the environment;
# when it cannot be read there all plugins run, so a path that would need quoting stops it.
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
# $2: the working directory, as JSON. $3: the conversation to go on with. goose tells no id of a conversation, so it is
# given one; and it counts tokens over the whole of it, so what it had counted before is told first.
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

    # --- in a conversation ------------------------------------------------------------------------------------------

    def live_process(self, turn: Turn) -> ProcessSpec:
        argv = writing(turn, _more(turn), ("sh", "-c", _LIVE, "goose-live", _on(turn), "goose", "acp"))
        env = _env(turn) | {"GOOSE_MODE": "approve" if turn.ask else "auto"}
        return ProcessSpec(
            name=turn.name, command=Command(argv=argv, cwd=turn.workdir, env=env, name=self.name), inbox=True
        )

    def driver(self, turn: Turn) -> Driver:
        from hiveyard.agents.acp.driver import QUIRKS, Acp  # its messages take most of a second to import

        return Acp(turn.workdir, conversation=turn.conversation, ask=turn.ask, quirks=QUIRKS[self.name])


def _argv(turn: Turn) -> tuple[str, ...]:
    workdir = msgspec.json.encode(turn.workdir).decode()
    conversation = "" if turn.conversation is None else checked_conversation(turn.conversation)
    # Without --quiet a banner comes before the first line.
    argv = ("goose", "run", "--quiet", "--output-format", "stream-json", "--instructions", "-")
    return writing(turn, _more(turn), ("sh", "-c", _BEGIN, "goose-begin", _on(turn), workdir, conversation, *argv))


def _on(turn: Turn) -> str:
    return "on" if turn.repository_config else "off"


def _more(turn: Turn) -> str:
    """The file with what is added to the system prompt: beside its own settings goose looks for hints of these names,
    as it does in the repository."""
    return f"{turn.state}/goose/config/goose/{_more_name(turn)}"


def _more_name(turn: Turn) -> str:
    return f"hiveyard-system-{turn.name}.md"


def _env(turn: Turn) -> dict[str, str]:
    hints = (*_HINTS, _more_name(turn)) if added(turn) else _HINTS
    provider, _, model = full_model("goose", turn.model).partition("/")
    return {
        "GOOSE_PROVIDER": provider,
        "GOOSE_MODEL": model,
        "ANTHROPIC_HOST": f"{turn.door_url}/anthropic",
        "ANTHROPIC_API_KEY": turn.placeholder,
        "OPENAI_HOST": f"{turn.door_url}/openai",
        "OPENAI_API_KEY": turn.placeholder,
        "GOOSE_MODE": "auto",
        "GOOSE_DISABLE_KEYRING": "1",
        "GOOSE_DISABLE_SESSION_NAMING": "1",  # it would ask a model for a title
        "GOOSE_DISABLE_TOOL_CALL_SUMMARY": "1",  # and for one of each call
        "GOOSE_TELEMETRY_OFF": "1",
        "CONTEXT_FILE_NAMES": msgspec.json.encode(hints).decode(),
        **{f"XDG_{kind.upper()}_HOME": f"{turn.state}/goose/{kind}" for kind in ("data", "state", "config", "cache")},
    }
