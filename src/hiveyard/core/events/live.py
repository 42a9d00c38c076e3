"""Events of an agent's process that takes one prompt after another: its start, and everything that it is told.

Together with its output they are complete: a new daemon reads them again and knows what the process knows."""

from __future__ import annotations

from hiveyard.core.events.body import Body


class LiveStarted(Body, frozen=True, kw_only=True, tag="live.started"):
    """The process was started, to continue `conversation` if that is set. Its output is read from its first byte."""

    process: str
    conversation: str = ""


class LiveSteered(Body, frozen=True, kw_only=True, tag="live.steered"):
    """A text was added to the current turn. `key` tells repetitions apart."""

    key: str
    text: str


class LiveInterrupted(Body, frozen=True, kw_only=True, tag="live.interrupted"):
    """A user asked to end the current turn. Its end follows."""

    key: str


class AskAnswered(Body, frozen=True, kw_only=True, tag="ask.answered"):
    """The question `ask` was answered with one of its options, or only allowed or denied. `message` tells the agent
    why. `request` is the name that the agent's program has for the question; "" if the hive keeps it. Then `by`
    answered it, with `options` if there are several."""

    ask: str
    request: str
    allow: bool
    option: str = ""
    options: tuple[str, ...] = ()
    message: str = ""
    by: str = ""


class ModelChosen(Body, frozen=True, kw_only=True, tag="session.model_chosen"):
    """The session's model from the next turn on. Older versions wrote this in place of SessionChanged."""

    model: str
    key: str = ""


LiveEvent = LiveStarted | LiveSteered | LiveInterrupted | AskAnswered | ModelChosen
