"""The environment of an agent's process."""

from __future__ import annotations

from collections.abc import Mapping

from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Turn


def with_variables(turn: Turn, own: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the user and those of the adapter. Raises BadInput if both set the same one."""
    if both := sorted(turn.env.keys() & own.keys()):
        raise BadInput(f"the variable {both[0]} is set by Hiveyard", hint="give it another name, or leave it out")
    return {**{name: value.reveal() for name, value in turn.env.items()}, **own}


def environment(turn: Turn) -> dict[str, str]:
    """Return the variables with which a program that Hiveyard does not know finds its door, its prompt and its
    state, and those of the user."""
    own = {
        "ANTHROPIC_BASE_URL": f"{turn.door_url}/anthropic",
        "ANTHROPIC_API_KEY": turn.placeholder,
        "OPENAI_BASE_URL": f"{turn.door_url}/openai/v1",
        "OPENAI_API_KEY": turn.placeholder,
        "HIVEYARD_PROMPT_FILE": turn.prompt,
        "HIVEYARD_STATE": turn.state,
    }
    return with_variables(turn, own)
