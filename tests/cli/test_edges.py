"""Errors of the command line and of the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import Hv


@pytest.mark.parametrize("words", [["show", "nothing"], ["dance"], ["run", "/nowhere", "-m", "x"], ["show"]])
def test_an_error_is_one_json_object_too(hv: Hv, words: list[str]) -> None:
    done = hv(*words, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize("agent", ["codex", "goose"])
def test_an_agent_that_is_not_in_the_image_is_refused_before_a_task_exists(hv: Hv, repo: Path, agent: str) -> None:
    done = hv("run", str(repo), "-m", "x", "--agent", agent, "--image", "default", "--provider", "auto")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == [
        f"error: the image default does not contain {agent}",
        f'  try: --image {agent}, or your own recipe with: from = "{agent}"',
    ]
    assert hv.json("ps", "-a") == []


def test_a_budget_of_zero_is_refused(hv: Hv, repo: Path) -> None:
    done = hv("run", str(repo), "-m", "x", "--command", "true", "--budget", "0")
    assert done.returncode == 2
    assert "budget" in done.stderr


def test_output_that_the_terminal_cannot_encode_is_no_error(hv: Hv, repo: Path) -> None:
    hv.env["PYTHONIOENCODING"] = "ascii"
    done = hv("run", str(repo), "-m", "x", "--command", "printf '\\303\\244\\n'")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def unread(hv: Hv, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run `hv` with a stdout whose reader has closed it."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(hv.argv(*words), env=hv.env, stdout=write, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(write)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, b""),
        (["rm", "--help"], 0, b""),
        (["version"], 0, b""),
        (["version", "--json"], 0, b""),
        (["dance", "--json"], 2, b"error: hv has no verb 'dance'\n  try: hv --help\n"),
    ],
)
def test_a_closed_pipe_is_no_error_and_hides_none(hv: Hv, words: list[str], status: int, said: bytes) -> None:
    done = unread(hv, *words)
    assert (done.returncode, done.stderr) == (status, said)


def test_output_that_cannot_be_written_is_one_line(hv: Hv) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(hv.argv("version", "--json"), env=hv.env, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (125, b"error: [Errno 28] No space left on device\n")


def test_a_closed_stdout_is_no_error(hv: Hv) -> None:
    closing = ["sh", "-c", 'exec "$@" >&-', "sh", *hv.argv("version")]
    done = subprocess.run(closing, env=hv.env, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_whose_reader_leaves_says_that_the_task_continues(hv: Hv, repo: Path) -> None:
    run = hv.start("run", str(repo), "-m", "long", "--command", "while sleep 0.2; do echo more; done")
    assert run.stdout is not None and run.stderr is not None
    id = run.stdout.readline().split("(")[1].rstrip(")\n")
    run.stdout.close()
    with run.stderr:
        error = run.stderr.read()
    assert run.wait(60) == 0, error
    assert error.splitlines()[-1] == f"left; the task continues: hv logs -f {id}"
    assert [task["id"] for task in hv.json("ps")] == [id]


@pytest.mark.parametrize("words", [[], ["-d"]])
def test_a_run_whose_output_is_never_read_says_it_too(hv: Hv, repo: Path, words: list[str]) -> None:
    done = unread(hv, "run", str(repo), "-m", "long", "--command", "sleep 600", *words)
    [task] = hv.json("ps")
    assert done.returncode == 0
    assert done.stderr.decode().splitlines()[-1] == f"left; the task continues: hv logs -f {task['id']}"


@pytest.mark.parametrize("words", [["send", "x", "-"], ["run", ".", "--prompt-file", "-"]])
def test_a_prompt_on_stdin_that_is_not_utf8_is_refused_with_the_position(hv: Hv, words: list[str]) -> None:
    done = subprocess.run(hv.argv(*words), env=hv.env, input=b"caf\xe9", capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == b"error: the prompt file - is not UTF-8: byte 3\n"


def test_two_prompts_are_refused(hv: Hv) -> None:
    done = hv("send", "x", "-", "--prompt-file", "notes.txt")
    assert done.returncode == 2
    assert "give one of them" in done.stderr


def test_ctrl_c_keeps_its_exit_code_when_it_also_ends_the_reader(hv: Hv, repo: Path) -> None:
    run = hv.start("run", str(repo), "-m", "long", "--command", "trap '' INT; echo begun; sleep 600", "--json")
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    with run.stderr:
        for wanted in ("begun", "asking the agent to stop"):
            assert any(wanted in line for line in run.stderr)
            run.send_signal(signal.SIGINT)
        assert "Exception" not in run.stderr.read()
    assert run.wait(60) == 130


def test_ctrl_c_is_a_json_object_for_every_verb(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "-m", "long", "--command", "sleep 600", "-d")
    logs = hv.start("logs", "-f", "long", "--json")
    assert logs.stdout is not None
    logs.stdout.readline()
    logs.send_signal(signal.SIGINT)
    out, err = logs.communicate(timeout=60)
    assert logs.returncode == 130, err
    assert json.loads(out.splitlines()[-1]) == {
        "error": {"code": "engine.cancelled", "message": "interrupted", "hint": ""}
    }


def test_a_long_prompt_is_read_completely_from_stdin(hv: Hv, repo: Path) -> None:
    prompt = "ä\n" * (1 << 18)
    run = [*hv.argv("run", str(repo), "--prompt-file", "-", "--command", "wc -c < {{prompt_file}}", "--json")]
    done = subprocess.run(run, env=hv.env, input=prompt, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert str(len(prompt.encode())) in done.stderr
    assert len(hv.json("ps", "-a")[0]["prompt"]) < 1000


@pytest.mark.parametrize(("words", "wanted"), [("hv lo", "logs"), ("hv run --bud", "--budget")])
def test_the_shell_completes_verbs_and_options(hv: Hv, words: str, wanted: str) -> None:
    env = {**hv.env, "_HV_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(hv.argv(), env=env, capture_output=True, text=True)
    assert wanted in done.stdout, done.stderr


def test_the_shell_completes_names_of_tasks_without_starting_a_daemon(own_hv: Hv, repo: Path) -> None:
    def offered(words: str) -> list[str]:
        env = {**own_hv.env, "_HV_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(own_hv.argv(), env=env, capture_output=True, text=True)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert offered("hv show ") == []
    assert own_hv.daemon_pid() is None
    for name in ("mend the basket", "mend the roof", "paint"):
        own_hv("run", str(repo), "-m", name, "--command", "echo x")
    assert offered("hv diff mend") == ["mend-the-roof", "mend-the-basket"]
    assert offered("hv rm paint pa") == ["paint"]


def test_a_damaged_journal_is_reported_at_the_start(own_hv: Hv) -> None:
    database = own_hv.home / "data" / "hiveyard.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"not a database" * 1000)
    done = own_hv("ps")
    database.unlink()
    assert done.returncode == 125
    assert str(database) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_that_cannot_start_says_why(own_hv: Hv) -> None:
    (own_hv.home / "data").mkdir()
    (own_hv.home / "data" / "sessions").write_text("in the way")
    done = own_hv("ps")
    (own_hv.home / "data" / "sessions").unlink()
    assert done.returncode == 125
    assert "sessions" in done.stderr


def test_a_verb_during_the_end_of_a_daemon_starts_the_next_one(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "-m", "slow", "--command", "sleep 600", "-d")
    for _ in range(2):
        pid = hv.daemon_pid()
        assert pid
        os.kill(pid, signal.SIGTERM)
        listed = hv("ps", "--json")
        assert listed.returncode == 0, listed.stderr
        assert len(json.loads(listed.stdout)) == 1
    assert (hv.home / "run" / "api.sock").exists()


def test_two_verbs_at_once_start_one_daemon(own_hv: Hv) -> None:
    first, second = own_hv.start("ps", "--json"), own_hv.start("ps", "--json")
    assert (first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]) == ("[]\n", "[]\n")
    assert (first.returncode, second.returncode) == (0, 0)


def test_a_run_ends_when_no_daemon_can_be_started_again(own_hv: Hv, repo: Path) -> None:
    run = own_hv.start("run", str(repo), "-m", "slow", "--command", "echo begun; sleep 600")
    assert run.stdout is not None
    for line in run.stdout:
        if "begun" in line:
            break
    config = (own_hv.home / "config.toml").read_text()
    (own_hv.home / "config.toml").write_text("[engine]\nnonsense = 1\n")
    own_hv.kill_daemon()
    err = run.communicate(timeout=60)[1]
    (own_hv.home / "config.toml").write_text(config)
    assert run.returncode == 2, err
    assert "nonsense" in err


def test_a_provider_without_a_door_is_refused_in_one_line(own_hv: Hv, repo: Path) -> None:
    own_hv.env["MORPH_API_KEY"] = "morph_Zq8TestSecret"
    done = own_hv("run", str(repo), "-m", "x", "--command", "true", "--provider", "morph", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["message"].startswith("morph cannot run agents yet")
    assert "\n" not in error["message"]
    for file in own_hv.home.rglob("*"):
        if file.is_file() and not file.is_symlink():
            assert b"a-secret-of-this-test" not in file.read_bytes(), file


class _Service(ThreadingHTTPServer):
    """A cloud that refuses every request, and keeps their paths."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Unavailable)
        self.asked: SimpleQueue[str] = SimpleQueue()


class _Unavailable(BaseHTTPRequestHandler):
    server: _Service

    def do_GET(self) -> None:
        self.server.asked.put(urlsplit(self.path).path)
        self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        return


def test_the_start_requests_no_snapshots_from_a_cloud(own_hv: Hv) -> None:
    own_hv.env["MORPH_API_KEY"] = "morph_Zq8TestSecret"
    with _Service() as service:
        config = (own_hv.home / "config.toml").read_text()
        address = f"http://127.0.0.1:{service.server_address[1]}"
        (own_hv.home / "config.toml").write_text(f'{config}\n[morph]\nurl = "{address}"\n')
        answering = threading.Thread(target=service.serve_forever, args=(0.05,))
        answering.start()
        try:
            assert own_hv.json("ps") == []
            assert service.asked.get(timeout=60) == "/instance", "what is left of machines, behind the start"
        finally:
            service.shutdown()
            answering.join()


@pytest.mark.parametrize("provider", ["docker", "bubblewrap"])
def test_a_machine_larger_than_the_host_is_refused_in_one_line(provider: str, hv: Hv, repo: Path) -> None:
    words = ("run", str(repo), "-m", "x", "--command", "true", "--provider", provider, "--memory", "10000000", "--json")
    error = json.loads(hv(*words).stdout)["error"]
    assert error["code"] == "provider.no_memory"
    assert error["message"].startswith("a machine of 10000000 MiB does not fit: ")
    assert "\n" not in error["message"]
    assert hv.json("ps", "-a") == []


@pytest.mark.parametrize("relative", ["HIVEYARD_HOME", "HIVEYARD_CACHE"])
def test_a_relative_home_or_cache_is_the_same_for_the_daemon(relative: str, own_hv: Hv, tmp_path: Path) -> None:
    env = {**own_hv.env, relative: "not-absolute"}

    def said(*words: str) -> str:
        argv = own_hv.argv(*words)
        return subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout

    assert said("ps", "--json") == "[]\n"
    assert json.loads(said("version", "--json"))["daemon"] is not None
    checks = {check["name"]: check for check in json.loads(said("doctor", "--json"))}
    place = "sessions" if relative == "HIVEYARD_HOME" else "cache"
    assert str(tmp_path / "not-absolute") in checks[place]["detail"]
    assert "stopped daemon" in said("stop-daemon")


@pytest.mark.parametrize("verb", [("run", "-m", "hello"), ("spawn",)])
def test_a_host_that_cannot_start_a_daemon_is_reported_once(
    hv: Hv, repo: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    hv.env["HIVEYARD_HOME"] = str(tmp_path / "file" / "home")
    refused = hv(verb[0], str(repo), *verb[1:])
    assert refused.returncode == 125
    assert refused.stderr.startswith("error: the daemon cannot be started: ")
    assert "starting it again" not in refused.stderr
    hv.env["HIVEYARD_HOME"] = str(hv.home)
