"""Compute the price of tokens from the price list of the package genai-prices, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from hiveyard.core.usage import Usage

IMAGES = "image_generation"
"""OpenAI's tool, used as the name of the model behind it."""
_IMAGE_MODELS = ("gpt-image-1", "gpt-image-1.5", "gpt-image-2", "gpt-image-2.5-sunburst")
_SURCHARGES = {("speed", "fast"): 6.0, ("inference_geo", "us"): 1.1}
"""The price factors of service terms that the price list does not know: the highest known ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """Facts besides the tokens that a price depends on.

    `cache_write_1h` is how many of the cache-write tokens are kept for an hour, `web_searches` how often the vendor
    searched the web. `terms` are the service terms, such as {"service_tier": "priority"}.
    """

    cache_write_1h: int = 0
    web_searches: int = 0
    terms: Mapping[str, str] = field(default_factory=dict)


class Prices:
    """The prices of the vendors' models, in US dollars."""

    def load(self) -> None:
        """Read the price list now (0.1 s) and not at the first answer."""
        self.cost("anthropic", "claude-sonnet-4-5", Usage())

    def cost(self, vendor: str, model: str, usage: Usage, extra: Extra | None = None) -> float | None:
        """Return the price of `usage`; None if the model is not on the list. IMAGES counts as a model."""
        if model == IMAGES:
            return _image_cost(usage)
        extra = extra or Extra()
        for provider in (vendor, None):  # a gateway may serve another vendor's models under this protocol
            try:
                return _cost(model, provider, usage, extra)
            except (LookupError, ValueError):
                continue
        return None


def _cost(model: str, provider: str | None, usage: Usage, extra: Extra) -> float:
    import genai_prices  # the import takes 0.1 s

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
    plain = price(terms)
    searched = price(terms, extra.web_searches) - plain if extra.web_searches else 0.0
    factor = 1.0
    for (name, value), times in _SURCHARGES.items():
        if terms.get(name) == value and plain == price({key: terms[key] for key in terms if key != name}):
            factor *= times
    return plain * factor + searched


def _image_cost(usage: Usage) -> float | None:
    """Return the cost of images by the most expensive possible model: the answer does not name the model."""
    import genai_prices

    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        input_image_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        output_image_tokens=usage.output_tokens,
    )
    costs = []
    for model in _IMAGE_MODELS if usage.output_tokens else ():
        with suppress(LookupError, ValueError):
            costs.append(float(genai_prices.calc_price(tokens, model, provider_id="openai").total_price))
    return max(costs, default=None)


def _more(usage: Usage, extra: Extra, searches: int) -> dict[str, int]:
    found = {"web_searches": searches} if searches else {}
    if 0 < extra.cache_write_1h <= usage.cache_write_tokens:
        found["cache_write_1h_tokens"] = extra.cache_write_1h
    return found
