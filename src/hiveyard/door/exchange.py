"""Relay the answer of a model to the guest, byte by byte.

Only three things are held back: bytes that may be the beginning of a key, the last chunk of an answer that is not
streamed, and the end of a stream until its usage is in the journal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import anyio

from hiveyard.core.errors import HiveyardError, KeyRefused, RateLimited, UpstreamFailed, UpstreamRefused
from hiveyard.door.meter import Meter, only_usage
from hiveyard.door.model_request import ModelRequest
from hiveyard.door.reply import Outgoing, Progress, Reply, Stalled
from hiveyard.door.sse import EventBlocks
from hiveyard.door.tape import Entry, encode_chunk
from hiveyard.door.tape_recorder import LARGEST_ANSWER, Recorder
from hiveyard.door.usage_recorder import UsageRecorder
from hiveyard.kit.mask import Mask
from hiveyard.kit.text import decode, one_line

_ERROR_BYTES = 16 << 10


class Exchange:
    """The relay of one answer to the guest. It records the answer's usage."""

    def __init__(
        self,
        asked: ModelRequest,
        usage_recorder: UsageRecorder,
        send: Outgoing,
        progress: Progress,
        *,
        recorder: Recorder | None,
    ) -> None:
        self._asked = asked
        self._usage_recorder = usage_recorder
        self._mask = Mask(())
        self._send = send
        self._progress = progress
        self._recorder = recorder
        self._turn = usage_recorder.turn
        self._started = usage_recorder.clock.monotonic()
        self._recorded = False
        self._saved = recorder is None
        self._chunks: list[tuple[float, bytes]] = []
        self._size = 0
        self._error_text = bytearray()

    async def relay(self, reply: Reply, mask: Mask) -> None:
        """Relay an answer without the secrets of `mask`. An answer that the vendor cut, or that the guest does not
        read, gets no end."""
        self._mask = mask
        meter = Meter(self._asked, streamed=reply.streamed)
        reply = replace(reply, headers=tuple((name, self._mask.text(value)) for name, value in reply.headers))
        try:
            await self._head(reply)
            await self._body(reply, meter)
        except Stalled:
            return
        except UpstreamFailed as error:
            await self._record_usage(reply, meter, complete=False, error=error)
            await self._save(reply, complete=False)
        finally:
            # The guest closed the connection, or the daemon stops: the usage so far is recorded.
            with anyio.CancelScope(shield=True):
                await self._record_usage(reply, meter, complete=meter.finished)
                if meter.finished:
                    await self._save(reply, complete=True)

    async def record_abandoned(self, status: int) -> None:
        """Record a request that ended before its answer began, but that the vendor may have received."""
        nothing = Reply(status=status, headers=(), chunks=_nothing(), source="upstream")
        self._recorded = True
        await self._called(nothing, Meter(self._asked, streamed=False), complete=False)

    async def _head(self, reply: Reply) -> None:
        headers = list(reply.headers)
        if self._asked.counted:
            headers = [(name, value) for name, value in headers if name != "content-length"]
        if reply.status in (401, 403):
            headers.append(("x-should-retry", "false"))  # the same key would be refused again
        start = {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        await self._send(start)

    async def _body(self, reply: Reply, meter: Meter) -> None:
        """Relay the answer's body up to its regular end."""
        blocks = EventBlocks() if self._asked.counted and reply.streamed else None
        last = b""
        async for chunk in self._masked_chunks(reply):
            meter.feed(chunk)
            if meter.finished:
                await self._record_usage(reply, meter, complete=True)
            if blocks is not None:
                chunk = b"".join(block for block in blocks.feed(chunk) if not only_usage(block))
            if reply.streamed:
                await self._send_chunk(chunk)
            else:
                await self._send_chunk(last)
                last = chunk
        meter.finish()
        await self._record_usage(reply, meter, complete=meter.finished)
        await self._save(reply, complete=True)
        await self._send_chunk(last + (blocks.finish() if blocks else b""), end=True)

    async def _masked_chunks(self, reply: Reply) -> AsyncIterator[bytes]:
        """Yield the chunks with keys masked. Keep them for the tape and for the text of an error."""
        masked = self._mask.stream()
        async for chunk in reply.chunks:
            if clean := masked.feed(chunk):
                self._keep(clean, reply.status)
                yield clean
        if rest := masked.finish():
            self._keep(rest, reply.status)
            yield rest

    def _keep(self, chunk: bytes, status: int) -> None:
        if status >= 400 and len(self._error_text) < _ERROR_BYTES:
            self._error_text += chunk[:_ERROR_BYTES]
        self._size += len(chunk)
        if self._recorder is not None and self._size <= LARGEST_ANSWER:
            self._chunks.append((self._seconds(), chunk))

    async def _send_chunk(self, chunk: bytes, *, end: bool = False) -> None:
        if chunk or end:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": not end})

    async def _record_usage(
        self, reply: Reply, meter: Meter, *, complete: bool, error: HiveyardError | None = None
    ) -> None:
        """Record the usage, or why there is no answer. Does so only once."""
        if self._recorded:
            return
        self._recorded = True
        protocol = self._asked.route.protocol
        if reply.status >= 400:
            failure = error or self._refusal(reply)
            await self._usage_recorder.failed(
                protocol or self._asked.route.vendor, failure, turn=self._turn, status=reply.status
            )
            return
        if meter.trouble:
            error = error or UpstreamFailed(f"{self._asked.route.vendor} broke off its answer: {meter.trouble}")
        await self._called(reply, meter, complete=complete and error is None)
        if error is not None:
            await self._usage_recorder.failed(
                protocol or self._asked.route.vendor, error, turn=self._turn, status=reply.status
            )

    async def _called(self, reply: Reply, meter: Meter, *, complete: bool) -> None:
        if self._asked.route.protocol:
            await self._usage_recorder.called(
                self._asked,
                meter.parts(self._progress.seconds),
                turn=self._turn,
                status=reply.status,
                seconds=self._seconds(),
                complete=complete,
                source=reply.source,
            )

    def _refusal(self, reply: Reply) -> HiveyardError:
        """Translate the vendor's error into ours."""
        vendor, status = self._asked.route.vendor, reply.status
        request_id = reply.header("request-id") or reply.header("x-request-id")
        named = f" (request {one_line(request_id, 80)})" if request_id else ""
        message = f"{vendor} answered {status}: {one_line(decode(bytes(self._error_text)), 500)}{named}"
        if status in (401, 403):
            return KeyRefused(
                message, hint=f"check the key for {vendor}: ANTHROPIC_API_KEY, OPENAI_API_KEY or keys.toml"
            )
        if status == 429:
            again = reply.header("retry-after")
            return RateLimited(message, hint=f"retry in {one_line(again, 40)} s" if again else "")
        return UpstreamFailed(message) if status >= 500 else UpstreamRefused(message)

    async def _save(self, reply: Reply, *, complete: bool) -> None:
        """Record the answer on the tape, only once. A tape that cannot be written does not stop the session."""
        if self._saved or self._recorder is None:
            return
        self._saved = True
        # Shielded: many guests close the connection after the last event, but the tape needs this round.
        with anyio.CancelScope(shield=True):
            await self._record(self._recorder, reply, complete=complete)

    async def _record(self, recorder: Recorder, reply: Reply, *, complete: bool) -> None:
        if self._size > LARGEST_ANSWER:
            await self._usage_recorder.notice(
                self._turn, "door.not_recorded", f"an answer of {self._size} bytes is not recorded"
            )
            return
        entry = Entry(
            ask=await recorder.ask_of(self._asked, self._mask.text),
            status=reply.status,
            headers=reply.headers,
            complete=complete,
            chunks=tuple((round(at * 1000, 1), encode_chunk(chunk)) for at, chunk in self._chunks),
        )
        try:
            await recorder.add(entry)
        except (OSError, ValueError) as error:
            await self._usage_recorder.notice(
                self._turn, "door.not_recorded", f"{recorder.path} cannot be written: {error}"
            )

    def _seconds(self) -> float:
        return self._usage_recorder.clock.monotonic() - self._started


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
