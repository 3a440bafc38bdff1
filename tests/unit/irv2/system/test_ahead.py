"""Work is done ahead of its consumer, in order, and no further than was asked for."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from irv2.system.ahead import map_ahead


def test_results_come_in_order_from_as_many_items_ahead_as_asked_for():
    taken = []

    def items() -> Iterator[int]:
        for i in range(10):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda i: i**2, items(), 3)
        assert next(results) == 0
        assert taken == [0, 1, 2, 3]
        assert list(results) == [i**2 for i in range(1, 10)]
