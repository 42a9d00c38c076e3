"""What tokens cost, by the price list that comes with genai-prices. No network."""

from __future__ import annotations

from hiveyard.core.usage import Usage


class Prices:
    """Prices of the vendors' models, in US dollars."""

    def load(self) -> None:
        """Read the price list now (0.1 s) and not at the first answer."""
        self.cost("anthropic", "claude-sonnet-4-5", Usage())

    def cost(self, vendor: str, model: str, usage: Usage, *, cache_write_1h: int = 0) -> float | None:
        """The price of `usage`, None when the model is not on the list.

        `cache_write_1h` is how many of the cache-write tokens are to be kept for an hour, at a higher price."""
        import genai_prices  # 0.1 s, needed only where something is priced

        tokens = genai_prices.Usage(
            input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            **({"cache_write_1h_tokens": cache_write_1h} if 0 < cache_write_1h <= usage.cache_write_tokens else {}),
        )
        for provider in (vendor, None):  # a gateway may serve another vendor's models under this protocol
            try:
                return float(genai_prices.calc_price(tokens, model, provider_id=provider).total_price)
            except (LookupError, ValueError):
                continue
        return None
