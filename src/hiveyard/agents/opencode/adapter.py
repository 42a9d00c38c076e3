"""opencode: headless as `opencode run --format json` with the prompt on stdin, in a conversation as `opencode acp`, or
at its own terminal; its whole configuration is in the environment.

What the repository brings that would run code on start is kept out in two steps, because opencode 1.18 reads
configuration twice: OPENCODE_DISABLE_PROJECT_CONFIG and --pure stop its first reader, but a second one imports
`.opencode/plugin/*` and the `plugins` of opencode.json whatever is set. So these three names are put aside while it
runs, in a way that git does not see, and back afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from hiveyard.agents.opencode.feed import OpencodeListener
from hiveyard.agents.opencode.parser import OpencodeParser
from hiveyard.agents.shared import terminal_process
from hiveyard.agents.shared.models import PROVIDERS, full_model
from hiveyard.agents.shared.system_prompt import added, writing
from hiveyard.agents.shared.wording import checked_conversation
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Driver
from hiveyard.core.ports import AgentTerminal, Parser, Turn

# $1 is where things are put aside; the rest is the command. What an interrupted run left there comes back first. A
# name that the agent made anew meanwhile wins over the one put aside. Signals reach opencode by the process group;
# the shell itself only waits.
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

# $1 is the directory of its own directories; the rest is the command. It loads npm's installer for half a minute of a
# processor to fetch its plugin library from a network that is not there, unless a lock file names that; and its screen
# is drawn anew many times a second for as long as something on it moves, whether anybody looks or not. Whoever wants
# that turns it on in its command list, which is kept. A file that a dying machine left is empty.
_CALM = r"""
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

    # --- in a conversation ------------------------------------------------------------------------------------------

    def live_process(self, turn: Turn) -> ProcessSpec:
        argv = ["opencode", "acp", "--cwd", turn.workdir, "--print-logs", "--log-level", "ERROR"]
        command = Command(argv=_kept_out(turn, argv), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, inbox=True)

    def driver(self, turn: Turn) -> Driver:
        from hiveyard.agents.acp.driver import QUIRKS, Acp  # its messages take most of a second to import

        model = full_model("opencode", turn.model)
        return Acp(turn.workdir, conversation=turn.conversation, model=model, ask=turn.ask, quirks=QUIRKS[self.name])

    # --- at its terminal --------------------------------------------------------------------------------------------

    def agent_terminal(self, turn: Turn) -> AgentTerminal:
        settings = {
            "argv": _kept_out(turn, ("opencode", "--model", full_model("opencode", turn.model))),
            "conversation": None if turn.conversation is None else checked_conversation(turn.conversation),
            "title": turn.name,
        }
        return AgentTerminal(
            terminal=terminal_process.agent_terminal(turn, self.name, settings, _env(turn)),
            feed=terminal_process.feed(turn, self.name),
        )

    def send_prompt(self, turn: Turn) -> Command:
        return Command(argv=terminal_process.argv_of(turn, self.name, "say", {"prompt": turn.prompt}))

    def interrupt(self, turn: Turn) -> Command:
        return Command(argv=terminal_process.argv_of(turn, self.name, "interrupt", {}))

    def feed_parser(self) -> Parser:
        return OpencodeListener()


def _argv(turn: Turn) -> tuple[str, ...]:
    # A title of ours saves the request with which it would have a model invent one.
    argv = ["opencode", "run", "--format", "json", "--thinking", "--title", turn.name]
    # Its errors go to stderr too: while it retries, that is the only sign of what it waits for.
    argv += ["--print-logs", "--log-level", "ERROR", "--model", full_model("opencode", turn.model)]
    if turn.conversation is not None:
        argv += ["--session", checked_conversation(turn.conversation)]
    return _kept_out(turn, argv)


def _kept_out(turn: Turn, argv: Sequence[str]) -> tuple[str, ...]:
    """The command, without what the repository brings that would run code, and what it would do beside the work."""
    if not turn.repository_config:
        argv = ("sh", "-c", _ASIDE, "opencode-aside", f"{turn.state}/opencode/aside", *argv, "--pure")
    return writing(turn, _more(turn), ("sh", "-c", _CALM, "opencode-calm", f"{turn.state}/opencode", *argv))


def _more(turn: Turn) -> str:
    """The file with what is added to the system prompt."""
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
    return env


def _config(turn: Turn) -> dict[str, object]:
    provider, _, model = full_model("opencode", turn.model).partition("/")
    doors: dict[str, dict[str, object]] = {
        name: {"options": {"baseURL": f"{turn.door_url}/{name}/v1", "apiKey": turn.placeholder}} for name in PROVIDERS
    }
    doors[provider]["models"] = {model: {}}  # so that a name it has never heard of is accepted
    config: dict[str, object] = {
        "autoupdate": False,
        "share": "disabled",
        "snapshot": False,  # a shadow repository for an undo that nobody presses here
        "permission": {"edit": "ask", "bash": "ask"} if turn.ask else "allow",
        "enabled_providers": list(PROVIDERS),
        "provider": doors,
    }
    if not turn.repository_config:
        config |= {"lsp": False, "formatter": False}  # both run programs that the repository may bring
    if words := _instructions(turn):
        config["instructions"] = words
    return config


def _instructions(turn: Turn) -> list[str]:
    """Files for the system prompt: those of the repository are only words, and let in again."""
    own = () if turn.repository_config else ("AGENTS.md", "CLAUDE.md", "CONTEXT.md")
    return [*(f"{turn.workdir}/{name}" for name in own), *([_more(turn)] if added(turn) else [])]
