"""Names of models for programs that reach several vendors: `provider/model`, or a bare name."""

from __future__ import annotations

from hiveyard.agents.shared.wording import checked_model
from hiveyard.core.errors import BadInput

PROVIDERS = ("anthropic", "openai")
"""Those that have a door."""

DEFAULT = "anthropic/claude-sonnet-5"

_OPENAI = ("gpt-", "chatgpt", "codex", "o1", "o3", "o4")


def full_model(program: str, model: str | None) -> str:
    """`provider/model`: `gpt-5.5` is `openai/gpt-5.5`, other names without a provider are Anthropic's.

    Raises BadInput for a provider that has no door."""
    if model is None:
        return DEFAULT
    checked_model(model)
    provider, slash, _ = model.partition("/")
    if not slash:
        return f"{'openai' if model.startswith(_OPENAI) else 'anthropic'}/{model}"
    if provider not in PROVIDERS:
        raise BadInput(
            f"{program} reaches models of {' and '.join(PROVIDERS)} here, not of {provider!r}",
            hint="--model anthropic/NAME or --model openai/NAME",
        )
    return model
