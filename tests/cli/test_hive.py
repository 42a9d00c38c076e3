"""`hv hive`: members and their mail, with the real program and daemon. Their agent is a program that says nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.cli.conftest import Hv, own_hv

__all__ = ["own_hv"]
ACP = f"python3 {Path(__file__).parents[1] / 'support' / 'acp_program.py'}"


def test_a_member_is_added_gets_mail_is_stopped_and_removed(own_hv: Hv, repo: Path) -> None:
    hv = own_hv
    assert hv("hive", "ls").stdout.startswith("NAME")
    assert hv("inbox").stderr.endswith("nothing waits for you\n")
    following = hv.start("inbox", "-f")
    program = repo / "agent.py"
    program.write_text((Path(__file__).parents[1] / "support" / "acp_program.py").read_text())
    added = hv("hive", "add", "ada", str(repo), "--include-dirty", "--acp", "python3 agent.py", "--role", "manager")
    assert (added.returncode, added.stdout) == (0, "ada: idle\n"), added.stderr
    refused = hv("hive", "add", "operator", str(repo))
    assert refused.returncode == 2 and "no member can be called operator" in refused.stderr
    [sent] = hv.json("hive", "send", "ada", "say 1 5")
    done = hv("send", "ada", "say 1 7", "--wait")
    assert done.returncode == 0, done.stderr
    mail = hv.json("hive", "mail", "ada")
    assert [(one["sender"], one["text"], one["state"]) for one in mail] == [
        ("operator", "say 1 5", "delivered"),
        ("operator", "say 1 7", "delivered"),
    ]
    assert mail[0]["id"] == sent["id"]
    assert f"operator to ada: say 1 5 ({sent['id']})" in hv("hive", "log", "ada").stdout
    assert hv("hive", "stop", "ada").stdout == "ada: stopped\n"
    hv("hive", "send", "ada", "wait for me", "--file", str(program))
    [row] = hv.json("hive", "ls")
    assert (row["name"], row["role"], row["state"], row["waiting"]) == ("ada", "manager", "stopped", 1)
    assert "1 messages" in hv("hive", "show", "ada").stdout
    nobody = hv("hive", "send", "bob", "hello", "--json")
    assert nobody.returncode == 2 and json.loads(nobody.stdout)["error"]["code"] == "not_found"
    following.send_signal(signal.SIGINT)
    assert following.communicate()[0] == ""  # nothing was for the operator
    assert hv("hive", "rm", "ada").stdout == "ada left the hive\n"
    assert hv.json("hive", "ls") == [] and hv.json("list", "-a") == []
