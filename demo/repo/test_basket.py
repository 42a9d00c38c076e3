import unittest

from basket import Basket


class BasketTest(unittest.TestCase):
    def test_an_empty_basket_costs_nothing(self) -> None:
        self.assertEqual(Basket().total(), 0)

    def test_every_piece_is_counted(self) -> None:
        basket = Basket()
        basket.add("apple", 30, quantity=4)
        basket.add("bread", 250)
        self.assertEqual(basket.total(), 370)


if __name__ == "__main__":
    unittest.main()
