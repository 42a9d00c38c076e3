"""A shopping basket. Money is in cents."""

from dataclasses import dataclass, field


@dataclass
class Basket:
    """Lines of (name, price, quantity)."""

    lines: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, name: str, price: int, quantity: int = 1) -> None:
        self.lines.append((name, price, quantity))

    def total(self) -> int:
        return sum(price for _, price, _ in self.lines)

    def discounted(self, percent: int) -> int:
        """The total less a discount, rounded down in the shop's favour."""
        return self.total() * (100 - percent) // 100
