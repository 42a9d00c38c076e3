"""List the verbs of `hv`, in groups, without importing their modules."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """A verb: its `place` (`module:name` below `hiveyard.cli`), its line in the help, and two examples without `hv`."""

    place: str
    help: str
    examples: tuple[str, str]


GROUPS: dict[str, dict[str, Verb]] = {
    "Run": {
        "run": Verb(
            "run:run",
            "Run an agent on a copy of a repository, and wait for the result.",
            ('run . "make the failing test pass"', 'run owner/repo -m "fix the typo" --agent codex --budget 0.50 -d'),
        ),
        "ps": Verb("tasks:ps", "List tasks.", ("ps", "ps -a -q")),
        "wait": Verb("wait:wait", "Wait until tasks and sessions are done.", ("wait fix-the-typo", "wait --any a b c")),
        "cancel": Verb(
            "tasks:cancel", "Stop a task's agent, and collect its work.", ("cancel 4k2", "cancel fix --json")
        ),
    },
    "Sessions": {
        "spawn": Verb(
            "spawn:spawn",
            "Start a session that you can leave and come back to.",
            ('spawn . "add a dark mode"', "spawn . --name ui --attach"),
        ),
        "list": Verb("sessions:list_", "List sessions.", ("list", "list -a --format json")),
        "attach": Verb(
            "attach:attach", "Attach this terminal to a session's agent.", ("attach ui", "attach ui --read-only")
        ),
        "send": Verb(
            "prompts:send",
            "Send a session's agent its next prompt.",
            ('send ui "now run the tests" --wait', "send ui - < plan.md"),
        ),
        "inbox": Verb("desk:inbox", "List the questions and messages that wait for you.", ("inbox", "inbox -a --json")),
        "answer": Verb(
            "desk:answer",
            "Answer the question of an agent.",
            ("answer 4k2 allow", 'answer 4k2 deny -m "ask me first"'),
        ),
        "model": Verb(
            "prompts:model", "Choose the model of a live session.", ("model ui opus", "model ui gpt-5.5 --json")
        ),
        "interrupt": Verb(
            "prompts:interrupt", "End a session's turn, and keep the session.", ("interrupt ui", "interrupt ui --json")
        ),
        "exec": Verb(
            "access:exec_", "Run a command in a session.", ("exec ui -- git status", "exec -T ui -- tar c . > it.tar")
        ),
        "cp": Verb("access:cp", "Copy files into a session, or out of it.", ("cp notes.md ui:", "cp ui:dist ./dist")),
        "port": Verb(
            "access:port", "Forward a port of this host into a session.", ("port ui 3000", "port ui --close 3000")
        ),
        "ssh-config": Verb(
            "access:ssh_config",
            "Print how ssh reaches a session.",
            ("ssh-config ui >> ~/.ssh/config", "ssh-config ui --json"),
        ),
        "pause": Verb("sessions:pause", "Freeze sessions, with their memory.", ("pause ui", "pause ui api")),
        "unpause": Verb("sessions:unpause", "Let frozen sessions continue.", ("unpause ui", "unpause ui api")),
        "stop": Verb("sessions:stop", "Stop sessions, and keep their files.", ("stop ui", "stop ui api --json")),
        "resume": Verb(
            "spawn:resume", "Continue a session that was stopped.", ("resume ui", "resume ui --budget 5 --attach")
        ),
    },
    "Hive": {
        "hive": Verb("hive:hive", "Let agents work together.", ("hive add ada", "hive ls")),
    },
    "Results": {
        "show": Verb("tasks:show", "Show one task or session.", ("show ui", "show 4k2 --json")),
        "logs": Verb("tasks:logs", "Show what an agent did.", ("logs -f ui", "logs --tail 20 ui")),
        "events": Verb("tasks:events", "Print events as JSON lines.", ("events ui", "events -f ui --raw")),
        "diff": Verb("results:diff", "Show what an agent changed.", ("diff ui", "diff ui | git apply")),
        "apply": Verb(
            "results:apply", "Bring an agent's branch into your repository.", ("apply ui", "apply ui --merge")
        ),
        "rm": Verb(
            "removal:rm",
            "Remove tasks and sessions, with everything that belongs to them.",
            ("rm ui", "rm --finished --older-than 7d"),
        ),
    },
    "Forks and snapshots": {
        "snapshot": Verb(
            "snapshots:snapshot", "Take a snapshot of a session.", ("snapshot ui --name green", "snapshot ui --json")
        ),
        "snapshots": Verb(
            "snapshots:snapshots",
            "List or remove a session's snapshots.",
            ("snapshots ui", "snapshots ui --remove green"),
        ),
        "fork": Verb(
            "snapshots:fork",
            "Fork a session into several.",
            ("fork ui -n 3", 'fork ui -m "use CSS" -m "use a library"'),
        ),
        "rewind": Verb("snapshots:rewind", "Go back to a snapshot.", ("rewind ui green", "rewind ui turn-3")),
        "compare": Verb(
            "snapshots:compare", "Compare sessions side by side.", ("compare ui ui-2", "compare ui ui-2 --json")
        ),
        "export": Verb(
            "system:export",
            "Write a stopped session into a file.",
            ("export ui ui.hv", "export ui - | ssh host hv import -"),
        ),
        "import": Verb(
            "system:import_", "Import a session from a file.", ("import ui.hv", "import ui.hv --new --name ui-copy")
        ),
    },
    "System": {
        "image": Verb("image:image", "Build, list and remove images.", ("image build default", "image ls")),
        "system": Verb("system:system", "Show and free disk space.", ("system df", "system prune --dry-run")),
        "web": Verb(
            "web:web",
            "Open the page, and list the browsers that are signed in to it.",
            ("web", "web devices"),
        ),
        "doctor": Verb("doctor:doctor", "Check what Hiveyard needs on this host.", ("doctor", "doctor --json")),
        "serve": Verb("serve:serve", "Run the daemon in the foreground.", ("serve", "serve &")),
        "stop-daemon": Verb(
            "serve:stop_daemon", "Stop the daemon; running agents continue.", ("stop-daemon", "stop-daemon --json")
        ),
        "version": Verb("serve:version", "Print the versions of hv and the daemon.", ("version", "version --json")),
        "completion": Verb(
            "manual:completion",
            "Print the completion script of a shell.",
            ("completion bash", "completion zsh > _hv"),
        ),
        "man": Verb("manual:man", "Print the manual page.", ("man > hv.1", "man | man -l -")),
        "help": Verb("manual:help_", "Print the help of hv or of a verb.", ("help", "help run")),
    },
}
VERBS: dict[str, Verb] = {name: verb for group in GROUPS.values() for name, verb in group.items()}

INNER: dict[str, tuple[str, str]] = {
    "hive add": ('hive add ada . "keep the tests green"', "hive add max --role manager --agent codex"),
    "hive ls": ("hive ls", "hive ls --json"),
    "hive show": ("hive show ada", "hive show ada --json"),
    "hive send": ('hive send ada "look at the last failure"', "hive send all - < news.md"),
    "hive mail": ("hive mail", "hive mail ada -n 20"),
    "hive log": ("hive log", "hive log ada -f"),
    "hive wake": ("hive wake ada", "hive wake ada --json"),
    "hive nap": ("hive nap ada 1h", "hive nap ada 10m --json"),
    "hive stop": ("hive stop ada", "hive stop ada --json"),
    "hive start": ("hive start ada", "hive start ada --json"),
    "hive rm": ("hive rm ada", "hive rm --force ada"),
    "image build": ("image build default", "image build ./mine.toml --force"),
    "image ls": ("image ls", "image ls --json"),
    "image rm": ("image rm mine", "image rm mine --json"),
    "web devices": ("web devices", "web devices --revoke 4k2"),
    "system df": ("system df", "system df -v"),
    "system reconcile": ("system reconcile", "system reconcile --json"),
    "system prune": ("system prune --dry-run", "system prune --all"),
}
"""Examples of the verbs of groups."""

ALIASES = {"ls": "list", "inspect": "show"}
"""Verbs of docker and git that have the meaning of one of these verbs."""
AMBIGUOUS = {
    "kill": "hv cancel TASK, or hv stop SESSION",
    "start": "hv spawn, or hv resume SESSION",
    "clone": "hv run REPO, or hv spawn REPO",
    "commit": "hv apply ID",
    "pull": "hv apply ID",
    "ssh": "hv attach SESSION, or hv ssh-config SESSION",
    "top": "hv list",
    "status": "hv list, or hv show ID",
    "delete": "hv rm ID",
    "remove": "hv rm ID",
}
"""Verbs of other programs, with the commands to use instead."""
