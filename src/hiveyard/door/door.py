"""The door of one session: an ASGI app that checks the key and the route of a request, and starts an exchange.

It must not know the store or the engine: it reports to its `UsageRecorder`.
"""

from __future__ import annotations

import hmac
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import anyio
from starlette.types import Receive, Scope, Send

from hiveyard.core.errors import BudgetSpent, HiveyardError, UpstreamFailed
from hiveyard.core.usage import Usage
from hiveyard.door import refusals, routes
from hiveyard.door.bodies import Bodies, HungUp, TooMuch
from hiveyard.door.exchange import Exchange
from hiveyard.door.model_request import ModelRequest, parse_request
from hiveyard.door.mounts import Mount, Mounted, Mounts, TooLarge
from hiveyard.door.quota import EventQuota, Quota
from hiveyard.door.refusals import LocalReply
from hiveyard.door.reply import Answers, Outgoing, Progress, Stalled
from hiveyard.door.routes import Refusal, Route
from hiveyard.door.settings import DoorSettings
from hiveyard.door.tape_recorder import Recorder
from hiveyard.door.usage_recorder import UsageRecorder
from hiveyard.kit.group import first
from hiveyard.kit.mask import Mask
from hiveyard.kit.names import new_id
from hiveyard.kit.secret import Secret

_log = logging.getLogger("hiveyard.door")
NO_MOUNTS: Mapping[str, Mount] = MappingProxyType({})
_HUNG_UP, _NO_ANSWER = 499, 502  # recorded as the status of calls without an answer


class Door:
    """The one HTTP endpoint of a session, at the socket `path`.

    `quota` is the number of bytes of request bodies that all doors may hold. `turn` may be set at any time; later
    requests belong to that turn. `last_seen` is the clock's monotonic time of the last request or chunk of an answer.
    `busy` counts the running requests to models. `mounts` are apps of this host by path, for instance `/mcp`.
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
        quota: Quota,
        mounts: Mapping[str, Mount] = NO_MOUNTS,
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
        self._mounts = Mounts(mounts)
        self._slots = anyio.CapacityLimiter(settings.requests)
        self._bodies = Bodies(settings, quota)
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
        """Return the session's usage, including that from before this door was opened."""
        return self._usage_recorder.budget.spent

    async def limit(self, dollars: float | None) -> None:
        """Set the session's total budget, from the next request on."""
        await self._usage_recorder.budget.allow(dollars)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        out = Outgoing(send, self._touch, self._settings.stall_seconds)
        request_id = f"hv_{new_id()}"
        self._touch()
        if (mounted := self._mounts.find(scope["raw_path"].decode("latin-1"))) is not None:
            await self._serve_mounted(mounted, scope, receive, out, request_id)
            return
        self.busy += 1
        try:
            await self._answer(scope, receive, out, request_id)
        except Exception as error:  # noqa: BLE001 - the top of a request's task
            self._failed(request_id, error)
            if not out.started:
                vendor = routes.vendor_of(scope["path"])
                await _send(out, refusals.of_status(vendor, 500, "the door failed; see its log", request_id))
        finally:
            self.busy -= 1

    def _failed(self, request_id: str, error: Exception) -> None:
        """Log an error, at a limited rate: else a guest that makes requests fail could rotate the log away."""
        if self._errors.take():
            # A traceback may quote the request.
            text = self._mask().text("".join(traceback.format_exception(error)))
            _log.error("request %s failed%s: %s", request_id, self._errors.note_skipped(), text)

    async def _serve_mounted(
        self, mounted: Mounted, scope: Scope, receive: Receive, out: Outgoing, request_id: str
    ) -> None:
        """Let an app of this host answer. It may stream for hours, so its requests are no sign that the agent works."""
        vendor = routes.vendor_of(mounted.prefix)
        if not self._is_authorized(scope):
            reason = "this door does not accept this key"
            await self._usage_recorder.refused(f"{scope['method']} {mounted.prefix}", reason)
            await _send(out, refusals.of_status(vendor, 401, reason, request_id))
            return
        try:
            await mounted.serve(scope, receive, out)
        except Exception as raised:  # noqa: BLE001 - the top of a request's task; an app may wrap it in a group
            error = first(raised)
            if isinstance(error, Stalled):
                return
            if not isinstance(error, TooLarge):
                self._failed(request_id, raised)
            if not out.started:
                status = 413 if isinstance(error, TooLarge) else 500
                words = str(error) if isinstance(error, TooLarge) else "the door failed; see its log"
                await _send(out, refusals.of_status(vendor, status, words, request_id))

    async def _answer(self, scope: Scope, receive: Receive, out: Outgoing, request_id: str) -> None:
        found = await self._checked(scope, request_id)
        if isinstance(found, LocalReply):
            await _send(out, found)
        else:
            async with self._slots:
                await self._serve(found, scope, receive, out, request_id)

    async def _checked(self, scope: Scope, request_id: str) -> Route | LocalReply:
        """Return the route of a request that may pass, or the answer to one that may not."""
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        if method in ("GET", "HEAD") and path in routes.PROBES:
            return LocalReply(200, [("content-type", "text/plain"), ("content-length", "4")], b"door")
        route = routes.find(method, path, scope["query_string"])
        if isinstance(route, Refusal):
            await self._usage_recorder.refused(f"{method} {path}", route.reason)
            return refusals.of_status(routes.vendor_of(path), route.status, route.reason, request_id)
        if not self._is_authorized(scope):
            reason = "this door does not accept this key"
            await self._usage_recorder.refused(f"{method} {path}", reason)
            return refusals.of_status(route.vendor, 401, reason, request_id)
        return route

    def _is_authorized(self, scope: Scope) -> bool:
        """Whether the request has a valid placeholder. The time does not depend on where a wrong one differs."""
        presented = routes.presented_keys(scope["headers"])
        return any(hmac.compare_digest(key, right) for key in presented for right in self._placeholders)

    async def _serve(self, route: Route, scope: Scope, receive: Receive, out: Outgoing, request_id: str) -> None:
        """Read the request and answer it, until the guest closes the connection."""
        try:
            async with self._bodies.held(receive, scope["headers"]) as body:
                # A large one takes a tenth of a second: other requests get their turn in between.
                async with self._reading:
                    asked = parse_request(
                        route,
                        query=scope["query_string"],
                        headers=tuple(routes.request_headers(scope["headers"])),
                        body=body,
                    )
                async with anyio.create_task_group() as group:
                    group.start_soon(_hung_up, receive, group.cancel_scope, name="watch for the guest hanging up")
                    await self._exchange(asked, out, request_id)
                    group.cancel_scope.cancel()
        except HungUp:
            return
        except TooMuch as error:
            await self._usage_recorder.refused(f"{route.method} /{route.vendor}{route.path}", error.reason)
            await _send(out, refusals.of_status(route.vendor, error.status, error.reason, request_id))
        except HiveyardError as error:
            await _send(out, refusals.of_error(route.vendor, error, request_id))

    async def _exchange(self, asked: ModelRequest, out: Outgoing, request_id: str) -> None:
        """Send the request and relay the answer. Report an error to the guest unless an answer has begun."""
        usage_recorder, route = self._usage_recorder, asked.route
        turn = usage_recorder.turn
        try:
            async with usage_recorder.budget.admitted(usage_recorder.estimate(asked)):
                await self._forward(asked, out)
            return
        except BudgetSpent as error:
            await usage_recorder.exhausted(turn)
            reply = refusals.of_error(route.vendor, error, request_id)
        except HiveyardError as error:
            reply = refusals.of_error(route.vendor, error, request_id)
            await usage_recorder.failed(route.protocol or route.vendor, error, turn=turn, status=reply.status)
        if not out.started:
            await _send(out, reply._replace(body=self._mask().data(reply.body)))

    async def _forward(self, asked: ModelRequest, out: Outgoing) -> None:
        progress = Progress(self._usage_recorder.clock)
        exchange = Exchange(asked, self._usage_recorder, out, progress, recorder=self._recorder)
        try:
            async with self._answers.ask(asked, progress) as answer:
                # The mask is made only now: the request may have been sent with a new key.
                await exchange.relay(answer, self._mask())
        except anyio.get_cancelled_exc_class():
            if progress.sent and not out.started:
                await exchange.record_abandoned(_HUNG_UP)
            raise
        except UpstreamFailed:
            if progress.sent:
                await exchange.record_abandoned(_NO_ANSWER)
            raise

    def _touch(self) -> None:
        self.last_seen = self._usage_recorder.clock.monotonic()


async def _hung_up(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel the scope when the guest closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _send(out: Outgoing, reply: LocalReply) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    with suppress(Stalled):  # the connection is closed then
        await out({"type": "http.response.start", "status": reply.status, "headers": headers})
        await out({"type": "http.response.body", "body": reply.body, "more_body": False})
