"""The door of one session: an ASGI app that checks who asks and for what, and hands the rest to an exchange.

It must not know the store or the engine: what it has to say goes to `Books`.
"""

from __future__ import annotations

import hmac
import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from starlette.types import Receive, Scope, Send

from hiveyard.core.errors import BudgetSpent, HiveyardError, UpstreamFailed
from hiveyard.core.usage import Usage
from hiveyard.door import refusals, routes
from hiveyard.door.bodies import Bodies, HungUp, TooMuch
from hiveyard.door.event_quota import EventQuota
from hiveyard.door.exchange import Exchange
from hiveyard.door.model_request import ModelRequest, understand
from hiveyard.door.outgoing import Outgoing, Stalled
from hiveyard.door.quota import Quota
from hiveyard.door.recorder import Recorder
from hiveyard.door.refusals import Said
from hiveyard.door.reply import Answers, Passage
from hiveyard.door.routes import Refusal, Route
from hiveyard.door.settings import DoorSettings
from hiveyard.door.usage_recorder import UsageRecorder
from hiveyard.kit.mask import Mask
from hiveyard.kit.names import new_id
from hiveyard.kit.secret import Secret

_log = logging.getLogger("hiveyard.door")
_HUNG_UP, _NO_ANSWER = 499, 502  # the statuses of calls that have none


class Door:
    """The one HTTP endpoint of a session, at the socket `path`.

    `room` is what all doors may hold of requests' bodies, in bytes. `turn` may be set at any time: what is asked from
    then on belongs to that turn. `last_seen` is the clock's monotonic time of the last sign of life, a request or a
    chunk of an answer; `busy` counts the requests on their way.
    """

    def __init__(
        self,
        *,
        path: Path,
        placeholders: Sequence[Secret],
        usage_recorder: UsageRecorder,
        answers: Answers,
        mask: Callable[[], Mask],
        settings: DoorSettings,
        recorder: Recorder | None,
        room: Quota,
    ) -> None:
        self.path = path
        self.last_seen = usage_recorder.clock.monotonic()
        self.busy = 0
        self._placeholders = [key.reveal().encode() for key in placeholders]
        self._usage_recorder = usage_recorder
        self._answers = answers
        self._mask = mask
        self._settings = settings
        self._recorder = recorder
        self._slots = anyio.CapacityLimiter(settings.requests)
        self._bodies = Bodies(settings, room)
        self._reading = anyio.Lock()
        self._errors = EventQuota(usage_recorder.clock)

    @property
    def turn(self) -> int | None:
        return self._usage_recorder.turn

    @turn.setter
    def turn(self, turn: int | None) -> None:
        self._usage_recorder.turn = turn

    @property
    def spent(self) -> Usage:
        """All that the session has used, with what it had used before this door was opened."""
        return self._usage_recorder.budget.spent

    async def limit(self, dollars: float | None) -> None:
        """Let the session spend so much in all, from the next request on."""
        await self._usage_recorder.budget.allow(dollars)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        out = Outgoing(send, self._saw, self._settings.stall_seconds)
        request_id = f"hv_{new_id()}"
        self._saw()
        self.busy += 1
        try:
            await self._answer(scope, receive, out, request_id)
        except Exception as error:  # noqa: BLE001 - the top of a request's task
            self._failed(request_id, error)
            if not out.begun:
                vendor = routes.vendor_of(scope["path"])
                await _say(out, refusals.of_status(vendor, 500, "the door failed; its log says why", request_id))
        finally:
            self.busy -= 1

    def _failed(self, request_id: str, error: Exception) -> None:
        """At a bounded rate: else a guest that finds out how to make a request fail would rotate the log away."""
        if self._errors.take():
            # A traceback may quote what was sent.
            text = self._mask().text("".join(traceback.format_exception(error)))
            _log.error("request %s failed%s: %s", request_id, self._errors.omitted(), text)

    async def _answer(self, scope: Scope, receive: Receive, out: Outgoing, request_id: str) -> None:
        found = await self._checked(scope, request_id)
        if isinstance(found, Said):
            await _say(out, found)
        else:
            async with self._slots:
                await self._serve(found, scope, receive, out, request_id)

    async def _checked(self, scope: Scope, request_id: str) -> Route | Said:
        """The route of a request that may pass, or what to say to one that may not."""
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        if method in ("GET", "HEAD") and path in routes.PROBES:
            return Said(200, [("content-type", "text/plain"), ("content-length", "4")], b"door")
        route = routes.find(method, path, scope["query_string"])
        if isinstance(route, Refusal):
            await self._usage_recorder.refused(f"{method} {path}", route.reason)
            return refusals.of_status(routes.vendor_of(path), route.status, route.reason, request_id)
        if not self._knows(scope):
            reason = "the key is not the one that this door takes"
            await self._usage_recorder.refused(f"{method} {path}", reason)
            return refusals.of_status(route.vendor, 401, reason, request_id)
        return route

    def _knows(self, scope: Scope) -> bool:
        """Whether a right placeholder was shown; a wrong one takes the same time wherever it differs."""
        shown = routes.presented_keys(scope["headers"])
        return any(hmac.compare_digest(key, right) for key in shown for right in self._placeholders)

    async def _serve(self, route: Route, scope: Scope, receive: Receive, out: Outgoing, request_id: str) -> None:
        """Read the request and answer it, for as long as the guest stays on the line."""
        try:
            async with self._bodies.held(receive, scope["headers"]) as body:
                # Large ones take a tenth of a second each: others get their turn between two.
                async with self._reading:
                    asked = understand(
                        route,
                        query=scope["query_string"],
                        headers=tuple(routes.asked_headers(scope["headers"])),
                        body=body,
                    )
                async with anyio.create_task_group() as group:
                    group.start_soon(_hung_up, receive, group.cancel_scope, name="watch for the guest hanging up")
                    await self._ask(asked, out, request_id)
                    group.cancel_scope.cancel()
        except HungUp:
            return
        except TooMuch as error:
            await self._usage_recorder.refused(f"{route.method} /{route.vendor}{route.path}", error.reason)
            await _say(out, refusals.of_status(route.vendor, error.status, error.reason, request_id))
        except HiveyardError as error:
            await _say(out, refusals.of_error(route.vendor, error, request_id))

    async def _ask(self, asked: ModelRequest, out: Outgoing, request_id: str) -> None:
        """Ask and pass the answer on; what goes wrong is told to the guest, if it still can be."""
        usage_recorder, route = self._usage_recorder, asked.route
        turn = usage_recorder.turn
        try:
            async with usage_recorder.budget.admitted(usage_recorder.estimate(asked)):
                await self._forward(asked, out)
            return
        except BudgetSpent as error:
            await usage_recorder.exhausted(turn)
            said = refusals.of_error(route.vendor, error, request_id)
        except HiveyardError as error:
            said = refusals.of_error(route.vendor, error, request_id)
            await usage_recorder.failed(route.protocol or route.vendor, error, turn=turn, status=said.status)
        if not out.begun:
            await _say(out, said._replace(body=self._mask().data(said.body)))

    async def _forward(self, asked: ModelRequest, out: Outgoing) -> None:
        passage = Passage(self._usage_recorder.clock)
        exchange = Exchange(asked, self._usage_recorder, out, passage, recorder=self._recorder)
        try:
            async with self._answers.ask(asked, passage) as reply:
                # Only now: the request may have been sent with a key that was new.
                await exchange.relay(reply, self._mask())
        except anyio.get_cancelled_exc_class():
            if passage.sent and not out.begun:
                await exchange.abandoned(_HUNG_UP)
            raise
        except UpstreamFailed:
            if passage.sent:
                await exchange.abandoned(_NO_ANSWER)
            raise

    def _saw(self) -> None:
        self.last_seen = self._usage_recorder.clock.monotonic()


async def _hung_up(receive: Receive, scope: anyio.CancelScope) -> None:
    """Give up what the guest does not wait for any more."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _say(out: Outgoing, said: Said) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in said.headers]
    with suppress(Stalled):  # it is cut then
        await out({"type": "http.response.start", "status": said.status, "headers": headers})
        await out({"type": "http.response.body", "body": said.body, "more_body": False})
