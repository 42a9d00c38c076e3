"""A hostile agent searches for the daemon's keys and for a way out of its machine, and finds neither."""

from __future__ import annotations

import json
import secrets
import socket
from pathlib import Path
from typing import Any

import pytest

from hiveyard.testing.script import say
from tests.end_to_end.main_job import probe
from tests.end_to_end.main_job.conftest import Opening, Speaking, Yard
from tests.end_to_end.main_job.host import Bait, bait, files_with, holders, own_addresses
from tests.engine.conftest import git

pytestmark = pytest.mark.real

FOREIGN = ["10.0.2.2", "10.0.2.3", "10.0.2.100", "172.17.0.1", "1.1.1.1", "192.0.2.1", "169.254.169.254"]


@pytest.mark.parametrize("provider", ["bubblewrap", "docker", "qemu"])
def test_an_agent_finds_no_key_and_no_way_out(provider: str, opening: Opening, speaking: Speaking, repo: Path) -> None:
    # The keys contain characters that are escaped in URLs and in JSON.
    key, stored = (f'sk-ant/Zq8TestSecret{secrets.token_hex(12)}+"{secrets.token_hex(8)}=' for _ in range(2))
    with (
        bait() as host,
        speaking([say("hello")], side_reply=None) as model,
        opening(provider, model, ANTHROPIC_API_KEY=key) as yard,
    ):
        _store_key(yard, stored)
        neighbour = _neighbour(yard, repo)
        _put_probe(repo, _asked(yard, host, [key, stored], neighbour))
        words = ("--command", "python3 probe.py probe.json", "--keep")
        status, report = yard.run(repo, "-m", "Look around.", *words)
        assert status == 0, report["error"]
        found = json.loads(yard.raw(report["id"]).decode().splitlines()[-1])

        assert found["uid"] != 0
        assert found["files"] > 100, "it did look"
        # It finds the mark in its own repository, so the search works.
        assert found["found"] == {"key0": [], "key1": [], "neighbour": [], "own": ["/session/repo/own.txt"]}
        assert not {name for name in found["environment"] if name.startswith(("HIVEYARD_A", "HIVEYARD_H"))}
        assert found["environment"]["ANTHROPIC_API_KEY"].startswith("hv-")
        assert found["reached"] == []
        assert not [path for path in found["sockets"] if str(yard.home) in path or "api.sock" in path]
        assert all(400 <= status < 600 or status == 0 for status in found["detours"]), found["detours"]

        # The door accepts the placeholder and no other key.
        assert found["door"]["status"] == 200
        assert "hello" in found["door"]["body"]
        assert found["stranger"]["status"] == 401
        assert model.saw_key(key)
        assert not model.saw_key(found["environment"]["ANTHROPIC_API_KEY"])

        # On the host, no other process and no file except the key file contains a key.
        assert holders(key) <= {yard.daemon_pid()}
        assert holders(stored) == set()
        wanted = probe.forms(key) | probe.forms(stored)
        own_file = str(yard.home / "keys.toml")
        assert files_with(yard.home, wanted) == [own_file], "the keys were written down"
        everything = "".join(yard(*words).stdout for words in (("events", report["id"]), ("show", report["id"])))
        assert not [form for form in wanted if form in everything.encode()]
    assert host.came == []


def test_the_bait_detects_connections(tmp_path: Path) -> None:
    with bait() as host:
        for port in (host.port, host.loopback):
            socket.create_connection(("127.0.0.1", port)).close()
        attempts: Any = [(probe.unix, [host.abstract]), (probe.tcp, ["::1", host.port]), (probe.tcp, ["127.0.0.1", 9])]
        assert len(probe.reached(attempts)) == 2
    assert sorted(came.split()[0] for came in host.came) == ["loopback", "tcp", "tcp", "unix"]
    (tmp_path / "log").write_bytes(b"x" + b"c2VjcmV0LWtleQ==")
    assert files_with(tmp_path, probe.forms("secret-key")) == [str(tmp_path / "log")]


def _store_key(yard: Yard, key: str) -> None:
    file = yard.home / "keys.toml"
    file.write_text(f"openai = {json.dumps(key)}\n")
    file.chmod(0o600)


def _neighbour(yard: Yard, repo: Path) -> Path:
    """Spawn another session whose agent is running; return the directory of its door."""
    words = ("-m", "wait", "--command", "echo here; sleep 600", "-d", "--provider", "bubblewrap")
    id = yard("run", str(repo), *words).stdout.strip()
    logs = yard.start("logs", "-f", id)
    assert logs.stdout is not None
    for line in logs.stdout:
        if "here" in line:
            break
    logs.kill()
    logs.communicate()
    door = yard.home / "run" / "doors" / id
    assert (door / "door.sock").is_socket()
    return door


def _asked(yard: Yard, host: Bait, keys: list[str], neighbour: Path) -> dict[str, Any]:
    door = json.loads((yard.sessions / neighbour.name / "door.json").read_text())
    sought = {f"key{number}": key for number, key in enumerate(keys)}
    sought |= {"neighbour": door["placeholder"], "own": "a mark of its own"}
    addresses = ["127.0.0.1", "::1", *FOREIGN, *own_addresses()]
    run = yard.home / "run"
    return {
        "backwards": {name: text[::-1] for name, text in sought.items()},
        "stranger": "another-key",
        "tcp": [
            *([address, port] for address in addresses for port in (host.port, host.loopback)),
            *([address, 22] for address in own_addresses()),
            ["1.1.1.1", 443],
            ["1.1.1.1", 53],
            ["8.8.8.8", 53],
        ],
        "udp": [
            *([address, host.datagrams] for address in addresses if ":" not in address),
            ["10.0.2.3", 53],
            ["1.1.1.1", 53],
        ],
        "unix": [host.abstract, str(run / "api.sock"), str(neighbour / "door.sock"), "/var/run/docker.sock"],
        "name": ["example.org", "api.anthropic.com", "host.docker.internal"],
        "seen": [str(yard.home), str(run), str(neighbour), str(yard.sessions / neighbour.name)],
        "detours": [["127.0.0.1", host.loopback], ["127.0.0.1", host.port]],
    }


def _put_probe(repo: Path, asked: dict[str, Any]) -> None:
    (repo / "probe.py").write_text(Path(probe.__file__).read_text())
    (repo / "probe.json").write_text(json.dumps(asked))
    (repo / "own.txt").write_text("a mark of its own")
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "A probe")
