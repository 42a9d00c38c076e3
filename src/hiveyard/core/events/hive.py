"""Events of the hive: its members, their messages, what they ask, and what they want to be reminded of.

An event of a message has the session of the member that gets the message, and "" if it is for the operator."""

from __future__ import annotations

from typing import Literal

from hiveyard.core.events.agent import AskOption
from hiveyard.core.events.body import Body

Role = Literal["member", "manager"]
MessageKind = Literal["message", "question", "answer", "reminder"]
AskKind = Literal["question", "storm", "crash"]
Delivery = Literal["turn", "recv", "steer"]


class MemberJoined(Body, frozen=True, kw_only=True, tag="member.joined"):
    """The session became a member of the hive, called `name`. `accepts` are the members that may write to it; None
    means all."""

    name: str
    role: Role = "member"
    accepts: tuple[str, ...] | None = None


class MemberLeft(Body, frozen=True, kw_only=True, tag="member.left"):
    """The session is no member any more."""

    name: str


class MemberAsleep(Body, frozen=True, kw_only=True, tag="member.asleep"):
    """The member was idle and gives its machine back. Whatever comes for it wakes it."""

    name: str


class MemberStopped(Body, frozen=True, kw_only=True, tag="member.stopped"):
    """The operator stopped the member, or the manager called `by`. Nothing that comes for it wakes it, until one of
    them starts it; the manager cannot start a member that the operator stopped."""

    name: str
    by: str = ""


class MemberCrashed(Body, frozen=True, kw_only=True, tag="member.crashed"):
    """The member's session ended unasked, for this reason. It starts again, unless it waits until the operator has
    answered `ask`."""

    name: str
    reason: str
    ask: str = ""


class MemberWoken(Body, frozen=True, kw_only=True, tag="member.woken"):
    """The member's sleep or nap ended early: `by` is the author of the message that did it, or the user."""

    name: str
    by: str = ""


class MemberNapping(Body, frozen=True, kw_only=True, tag="member.napping"):
    """The member takes no messages before `until`, except the operator's."""

    name: str
    until: float


class MemberNoted(Body, frozen=True, kw_only=True, tag="member.noted"):
    """The member said what it works on."""

    name: str
    note: str


class MessageSent(Body, frozen=True, kw_only=True, tag="message.sent"):
    """A message is in the mailbox of `to`. `thread` is the first message of its thread, if that is another one. `hops`
    counts the messages of members that led to it. `files` are the names of its files. `ask` is the question that it
    puts, or whose answer it is. A message of kind `reminder` is one that the member set itself."""

    message: str
    sender: str
    to: str
    text: str
    kind: MessageKind = "message"
    thread: str = ""
    reply_to: str = ""
    hops: int = 0
    urgent: bool = False
    files: tuple[str, ...] = ()
    ask: str = ""


class MessageDelivered(Body, frozen=True, kw_only=True, tag="message.delivered"):
    """The member has the message: in the prompt of a new turn, as the answer of `recv`, or added to the turn that
    runs."""

    message: str
    by: Delivery = "turn"


class MessageRead(Body, frozen=True, kw_only=True, tag="message.read"):
    """The operator has seen the message."""

    message: str


class MessageHeld(Body, frozen=True, kw_only=True, tag="message.held"):
    """The message waits until the operator has answered `ask`."""

    message: str
    ask: str
    reason: str


class MessageReleased(Body, frozen=True, kw_only=True, tag="message.released"):
    """A held message is in the mailbox now. Its hops begin again."""

    message: str


class MessageDropped(Body, frozen=True, kw_only=True, tag="message.dropped"):
    """A held message will not be delivered."""

    message: str


class AskOpened(Body, frozen=True, kw_only=True, tag="ask.opened"):
    """`asker` asks `to`, or the hive asks the operator. With `multi` several options may be chosen. It expires at
    `expires_at`; None means never."""

    ask: str
    kind: AskKind
    asker: str
    to: str
    question: str
    options: tuple[AskOption, ...] = ()
    multi: bool = False
    expires_at: float | None = None


class AskExpired(Body, frozen=True, kw_only=True, tag="ask.expired"):
    """Nobody answered the question in time."""

    ask: str


class AskWithdrawn(Body, frozen=True, kw_only=True, tag="ask.withdrawn"):
    """The asker does not need an answer any more."""

    ask: str


class ReminderSet(Body, frozen=True, kw_only=True, tag="reminder.set"):
    """The member will be reminded at `due_at`, and then again after each `every` seconds if that is set. `hops` is the
    hop count of the message that reminds it."""

    reminder: str
    text: str
    due_at: float
    every: float | None = None
    hops: int = 0


class ReminderDue(Body, frozen=True, kw_only=True, tag="reminder.due"):
    """The reminder for `due_at` was put into the mailbox. `next_at` is when it is due again, if it repeats."""

    reminder: str
    due_at: float
    next_at: float | None = None


class ReminderCancelled(Body, frozen=True, kw_only=True, tag="reminder.cancelled"):
    """The reminder will not be due any more."""

    reminder: str


MemberEvent = (
    MemberJoined | MemberLeft | MemberAsleep | MemberStopped | MemberCrashed | MemberWoken | MemberNapping | MemberNoted
)
MessageEvent = MessageSent | MessageDelivered | MessageRead | MessageHeld | MessageReleased | MessageDropped
AskEvent = AskOpened | AskExpired | AskWithdrawn
ReminderEvent = ReminderSet | ReminderDue | ReminderCancelled
HiveEvent = MemberEvent | MessageEvent | AskEvent | ReminderEvent
