"""The environment of a program that Hiveyard does not know."""

from __future__ import annotations

from hiveyard.core.ports import Turn


def environment(turn: Turn) -> dict[str, str]:
    """Return the variables with which a program of the user finds its door, its prompt and its state."""
    return {
        "ANTHROPIC_BASE_URL": f"{turn.door_url}/anthropic",
        "ANTHROPIC_API_KEY": turn.placeholder,
        "OPENAI_BASE_URL": f"{turn.door_url}/openai/v1",
        "OPENAI_API_KEY": turn.placeholder,
        "HIVEYARD_PROMPT_FILE": turn.prompt,
        "HIVEYARD_STATE": turn.state,
    }
