"""One request on its way to a model and the answer on its way back, byte by byte.

Nothing is held back but what must be: bytes that may be the beginning of a key, the last chunk of an answer that comes
whole, and the end of a stream until its usage is in the journal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import anyio

from hiveyard.core.errors import HiveyardError, KeyRefused, RateLimited, UpstreamFailed, UpstreamRefused
from hiveyard.door.meter import Meter, only_usage
from hiveyard.door.model_request import ModelRequest
from hiveyard.door.outgoing import Outgoing, Stalled
from hiveyard.door.recorder import LARGEST_ANSWER, Recorder
from hiveyard.door.reply import Passage, Reply
from hiveyard.door.sse import EventBlocks
from hiveyard.door.tape import Entry, packed
from hiveyard.door.usage_recorder import UsageRecorder
from hiveyard.kit.mask import Mask
from hiveyard.kit.text import decode, one_line

_COMPLAINT = 16 << 10


class Exchange:
    """Passes one answer to the guest and sees to it that it is written down what it used."""

    def __init__(
        self,
        asked: ModelRequest,
        usage_recorder: UsageRecorder,
        send: Outgoing,
        passage: Passage,
        *,
        recorder: Recorder | None,
    ) -> None:
        self._asked = asked
        self._usage_recorder = usage_recorder
        self._mask = Mask(())
        self._send = send
        self._passage = passage
        self._recorder = recorder
        self._turn = usage_recorder.turn
        self._started = usage_recorder.clock.monotonic()
        self._settled = False
        self._saved = recorder is None
        self._chunks: list[tuple[float, bytes]] = []
        self._size = 0
        self._complaint = bytearray()

    async def relay(self, reply: Reply, mask: Mask) -> None:
        """Pass an answer on, with the secrets of `mask` taken out. One that is cut, by the vendor or because the guest
        does not read it, gets no end."""
        self._mask = mask
        meter = Meter(self._asked, streamed=reply.streamed)
        reply = replace(reply, headers=tuple((name, self._mask.text(value)) for name, value in reply.headers))
        try:
            await self._head(reply)
            await self._body(reply, meter)
        except Stalled:
            return
        except UpstreamFailed as error:
            await self._settle(reply, meter, complete=False, error=error)
            await self._save(reply, complete=False)
        finally:
            # The guest hung up, or we are stopping: what was used so far is used.
            with anyio.CancelScope(shield=True):
                await self._settle(reply, meter, complete=meter.finished)
                if meter.finished:
                    await self._save(reply, complete=True)

    async def abandoned(self, status: int) -> None:
        """It ended when the vendor may have had the request, and before the answer began: it is counted."""
        nothing = Reply(status=status, headers=(), chunks=_nothing(), source="upstream")
        self._settled = True
        await self._called(nothing, Meter(self._asked, streamed=False), complete=False)

    async def _head(self, reply: Reply) -> None:
        headers = list(reply.headers)
        if self._asked.counted:
            headers = [(name, value) for name, value in headers if name != "content-length"]
        if reply.status in (401, 403):
            headers.append(("x-should-retry", "false"))  # the same key will be refused again
        start = {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        await self._send(start)

    async def _body(self, reply: Reply, meter: Meter) -> None:
        """The answer's body, to its clean end."""
        wanted = EventBlocks() if self._asked.counted and reply.streamed else None
        last = b""
        async for chunk in self._clean(reply):
            meter.feed(chunk)
            if meter.finished:
                await self._settle(reply, meter, complete=True)
            if wanted is not None:
                chunk = b"".join(block for block in wanted.feed(chunk) if not only_usage(block))
            if reply.streamed:
                await self._pass(chunk)
            else:
                await self._pass(last)
                last = chunk
        meter.finish()
        await self._settle(reply, meter, complete=meter.finished)
        await self._save(reply, complete=True)
        await self._pass(last + (wanted.finish() if wanted else b""), end=True)

    async def _clean(self, reply: Reply) -> AsyncIterator[bytes]:
        """The chunks with keys masked, kept for the tape and for an error's text."""
        masked = self._mask.stream()
        async for chunk in reply.chunks:
            if clean := masked.feed(chunk):
                self._keep(clean, reply.status)
                yield clean
        if rest := masked.finish():
            self._keep(rest, reply.status)
            yield rest

    def _keep(self, chunk: bytes, status: int) -> None:
        if status >= 400 and len(self._complaint) < _COMPLAINT:
            self._complaint += chunk[:_COMPLAINT]
        self._size += len(chunk)
        if self._recorder is not None and self._size <= LARGEST_ANSWER:
            self._chunks.append((self._seconds(), chunk))

    async def _pass(self, chunk: bytes, *, end: bool = False) -> None:
        if chunk or end:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": not end})

    async def _settle(self, reply: Reply, meter: Meter, *, complete: bool, error: HiveyardError | None = None) -> None:
        """Write down what was used, or why there is no answer; once."""
        if self._settled:
            return
        self._settled = True
        protocol = self._asked.route.protocol
        if reply.status >= 400:
            failure = error or self._refusal(reply)
            await self._usage_recorder.failed(
                protocol or self._asked.route.vendor, failure, turn=self._turn, status=reply.status
            )
            return
        if meter.trouble:
            error = error or UpstreamFailed(f"{self._asked.route.vendor} gave up its answer: {meter.trouble}")
        await self._called(reply, meter, complete=complete and error is None)
        if error is not None:
            await self._usage_recorder.failed(
                protocol or self._asked.route.vendor, error, turn=self._turn, status=reply.status
            )

    async def _called(self, reply: Reply, meter: Meter, *, complete: bool) -> None:
        if self._asked.route.protocol:
            await self._usage_recorder.called(
                self._asked,
                meter.parts(self._passage.seconds),
                turn=self._turn,
                status=reply.status,
                seconds=self._seconds(),
                complete=complete,
                source=reply.source,
            )

    def _refusal(self, reply: Reply) -> HiveyardError:
        """The vendor's error as ours."""
        vendor, status = self._asked.route.vendor, reply.status
        request_id = reply.header("request-id") or reply.header("x-request-id")
        named = f" (request {one_line(request_id, 80)})" if request_id else ""
        said = f"{vendor} answered {status}: {one_line(decode(bytes(self._complaint)), 500)}{named}"
        if status in (401, 403):
            return KeyRefused(said, hint=f"check the key for {vendor}: ANTHROPIC_API_KEY, OPENAI_API_KEY or keys.toml")
        if status == 429:
            again = reply.header("retry-after")
            return RateLimited(said, hint=f"again in {one_line(again, 40)} s" if again else "")
        return UpstreamFailed(said) if status >= 500 else UpstreamRefused(said)

    async def _save(self, reply: Reply, *, complete: bool) -> None:
        """Put the answer on the tape; once. A tape that cannot be written does not stop the work."""
        if self._saved or self._recorder is None:
            return
        self._saved = True
        # Shielded: many a guest hangs up once it has the last event, and the tape needs this round all the same.
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
            chunks=tuple((round(at * 1000, 1), packed(chunk)) for at, chunk in self._chunks),
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
