"""Take orders that are charged and shipped later."""

from __future__ import annotations

import json
import time

from shop_celery import charge, ship

SECONDS = 3
NUMBERS = (6, 7)


def produce() -> None:
    """Take orders, one of which is charged at the second attempt; print the effects and when they may happen."""
    expected = {}
    for number in NUMBERS:
        order = f"delayed-{number}"
        due = time.time() + SECONDS
        (charge.s(order) | ship.s().set(countdown=1)).apply_async(countdown=SECONDS)
        expected[f"charge {order}"] = due
        expected[f"ship {order}"] = due
    print(json.dumps(expected), flush=True)


if __name__ == "__main__":
    produce()
