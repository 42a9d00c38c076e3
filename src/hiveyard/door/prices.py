"""What tokens cost, by the price list that comes with genai-prices. No network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from hiveyard.core.usage import Usage

IMAGES = "image_generation"
"""OpenAI's tool, where it stands for the model behind it."""
_DRAWING = ("gpt-image-1", "gpt-image-1.5", "gpt-image-2", "gpt-image-2.5-sunburst")
_DEARER = {("speed", "fast"): 6.0, ("inference_geo", "us"): 1.1}
"""How many times dearer the vendor serves tokens so, where the list makes no difference: the dearest that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What makes the same tokens dearer or cheaper.

    `cache_write_1h` is how many of the cache-write tokens are to be kept for an hour, `web_searches` how often the
    vendor searched the web, `terms` are how the request was served, such as {"service_tier": "priority"}."""

    cache_write_1h: int = 0
    web_searches: int = 0
    terms: Mapping[str, str] = field(default_factory=dict)


class Prices:
    """Prices of the vendors' models, in US dollars."""

    def load(self) -> None:
        """Read the price list now (0.1 s) and not at the first answer."""
        self.cost("anthropic", "claude-sonnet-4-5", Usage())

    def cost(self, vendor: str, model: str, usage: Usage, extra: Extra | None = None) -> float | None:
        """The price of `usage`, None when the model is not on the list. IMAGES is a model, too."""
        if model == IMAGES:
            return _drawn(usage)
        extra = extra or Extra()
        for provider in (vendor, None):  # a gateway may serve another vendor's models under this protocol
            try:
                return _cost(model, provider, usage, extra)
            except (LookupError, ValueError):
                continue
        return None


def _cost(model: str, provider: str | None, usage: Usage, extra: Extra) -> float:
    import genai_prices  # 0.1 s, needed only where something is priced

    def price(terms: Mapping[str, str], searches: int = 0) -> float:
        tokens = genai_prices.Usage(
            input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            **_more(usage, extra, searches),
        )
        priced = genai_prices.calc_price(tokens, model, provider_id=provider, price_context=dict(terms))
        return float(priced.total_price)

    terms = extra.terms
    served = price(terms)
    searched = price(terms, extra.web_searches) - served if extra.web_searches else 0.0
    factor = 1.0
    for (name, said), times in _DEARER.items():
        if terms.get(name) == said and served == price({key: terms[key] for key in terms if key != name}):
            factor *= times
    return served * factor + searched


def _drawn(usage: Usage) -> float | None:
    """What images cost at the dearest model that may have drawn them: an answer does not say which one it was."""
    import genai_prices

    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        input_image_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        output_image_tokens=usage.output_tokens,
    )
    costs = []
    for model in _DRAWING if usage.output_tokens else ():
        with suppress(LookupError, ValueError):
            costs.append(float(genai_prices.calc_price(tokens, model, provider_id="openai").total_price))
    return max(costs, default=None)


def _more(usage: Usage, extra: Extra, searches: int) -> dict[str, int]:
    found = {"web_searches": searches} if searches else {}
    if 0 < extra.cache_write_1h <= usage.cache_write_tokens:
        found["cache_write_1h_tokens"] = extra.cache_write_1h
    return found
