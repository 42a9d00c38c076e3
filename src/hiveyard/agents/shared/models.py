"""Names of models for programs that use several vendors: `provider/model`, or a name alone."""

from __future__ import annotations

from hiveyard.agents.shared.wording import checked_model
from hiveyard.core.errors import BadInput

PROVIDERS = ("anthropic", "openai")
"""The providers that the door supports."""

DEFAULT = "anthropic/claude-sonnet-5"

_OPENAI = ("gpt-", "chatgpt", "codex", "o1", "o3", "o4")


def full_model(program: str, model: str | None) -> str:
    """Return `provider/model`: `gpt-5.5` is `openai/gpt-5.5`; other names without a provider are Anthropic's.

    Raises BadInput for a provider that the door does not support."""
    if model is None:
        return DEFAULT
    checked_model(model)
    provider, slash, _ = model.partition("/")
    if not slash:
        return f"{'openai' if model.startswith(_OPENAI) else 'anthropic'}/{model}"
    if provider not in PROVIDERS:
        raise BadInput(
            f"{program} can use models of {' and '.join(PROVIDERS)} here, not of {provider!r}",
            hint="use --model anthropic/NAME or --model openai/NAME",
        )
    return model
