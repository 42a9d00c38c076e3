"""Keep tokens in a file, as a caller of `Refresher` does. As a program it requests them several times:
FILE LOCK URL TIMES MARGIN -> one line per request."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from hiveyard.credentials.claude_oauth import OAuthSettings, Tokens, tokens_of_file
from hiveyard.credentials.refresher import Refresher
from hiveyard.kit.files import write_atomic
from hiveyard.kit.secret import Secret

from .oauth_server import CLIENT


class Keeper:
    """Tokens in a file. `broken` makes `save` fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = False

    async def load(self) -> Tokens | None:
        return tokens_of_file(Secret(self.path.read_text())) if self.path.exists() else None

    async def save(self, tokens: Tokens) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        write_atomic(self.path, tokens.file().reveal().encode(), mode=0o600)


async def main(*words: str) -> None:
    file, lock, url, times, margin = words
    keeper = Keeper(Path(file))
    settings = OAuthSettings(token_url=f"{url}/token", client_id=CLIENT)
    refresher = Refresher(settings, keeper.load, keeper.save, lock=Path(lock), margin=float(margin))
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(times)):
        print((await refresher.tokens()).access.reveal(), flush=True)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
