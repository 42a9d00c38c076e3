"""Record demo/tape.jsonl anew: the real agent in a real machine, answered by the scripted model.

python demo/record.py        # after a change of the script, the sample repository or the agent's version
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio

from hiveyard.testing.model import scripted_model
from hiveyard.testing.script import load

HERE = Path(__file__).parent
PROMPT = "Make the failing test pass, and commit."


def sample(into: Path) -> Path:
    """The sample repository, with one commit."""
    repo = into / "shop"
    git = ["git", "-C", str(repo), "-c", "user.name=Demo", "-c", "user.email=demo@localhost"]
    subprocess.run(["cp", "-r", str(HERE / "repo"), str(repo)], check=True)
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "A shop"], check=True)
    return repo


async def main() -> int:
    tape = HERE / "tape.jsonl"
    tape.unlink(missing_ok=True)
    hv = [sys.executable, "-m", "hiveyard.cli.main"]
    with tempfile.TemporaryDirectory() as scratch:
        async with scripted_model(load((HERE / "script.json").read_bytes())) as model:
            env = {
                **os.environ,
                "HIVEYARD_HOME": f"{scratch}/home",
                "HIVEYARD_CACHE": os.environ.get("HIVEYARD_CACHE", str(Path.home() / ".cache" / "hiveyard")),
                "HIVEYARD_ANTHROPIC_UPSTREAM": model.url,
                "ANTHROPIC_API_KEY": "sk-not-a-key-at-all",
            }
            repo = sample(Path(scratch))
            run = [*hv, "run", str(repo), "-m", PROMPT, "--agent", "claude", "--record", str(tape), *sys.argv[1:]]
            done = await anyio.run_process(run, env=env, check=False, stdout=None, stderr=None)
            await anyio.run_process([*hv, "stop-daemon"], env=env, check=False, stdout=None, stderr=None)
    return done.returncode


if __name__ == "__main__":
    sys.exit(anyio.run(main))
