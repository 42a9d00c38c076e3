"""The connection of a guest that does not read is closed, and the sent part is counted."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import pytest

from hiveyard.core.events import ModelCalled
from hiveyard.door.settings import DoorSettings

from .guests import head, raw
from .house import MemoryJournal, door, until
from .upstream import streamed, upstream

pytestmark = pytest.mark.anyio


async def test_a_guest_that_does_not_read_is_cut_and_the_log_stays_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = MemoryJournal()
    piece = b"data: " + b"a" * (1 << 20) + b"\n\n"
    async with upstream(streamed(*[piece] * 64)) as up:
        settings = DoorSettings(anthropic_upstream=up.url, openai_upstream=up.url, stall_seconds=0.3)
        async with door(up.url, journal, tmp_path, settings=settings) as opened, raw(opened) as stream:
            body = b'{"model":"gpt-5","stream":true,"input":"x"}'
            await stream.send(head("/openai/v1/responses", f"content-length: {len(body)}", method="POST") + body)
            await until(lambda: bool(journal.of(ModelCalled)))
            await until(lambda: not opened.busy)
    assert not journal.of(ModelCalled)[0].complete
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_a_guest_that_does_not_read_a_refusal_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    request = head("/nowhere").replace(b"connection: close", b"connection: keep-alive")
    settings = DoorSettings(stall_seconds=0.3)
    async with door("", MemoryJournal(), tmp_path, settings=settings) as opened, raw(opened) as stream:
        with pytest.raises(anyio.BrokenResourceError), anyio.fail_after(20):
            while True:
                await stream.send(request * 100)
        await until(lambda: not opened.busy)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
