"""Take orders in an existing Celery application."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from celery import chord
from shop_celery import app, bill, charge, ship


def produce(name: str, per_second: float) -> None:
    """Take orders until told to stop, and print each that was accepted, with its stage's effects."""
    number = 0
    while not Path(os.environ["SHOP_STOP"]).exists():
        number += 1
        order = f"{name}-{number}"
        if number % 5 == 0:
            parts = [f"{order}.{part}-{number * 10 + part}" for part in (1, 2)]
            chord([charge.s(part) for part in parts], bill.s(), app=app).apply_async()
            expected = [*(f"charge {part}" for part in parts), f"bill {'+'.join(sorted(parts))}"]
        else:
            (charge.s(order) | ship.s()).apply_async()
            expected = [f"charge {order}", f"ship {order}"]
        print(json.dumps(expected), flush=True)
        time.sleep(1 / per_second)


if __name__ == "__main__":
    produce(sys.argv[1], float(sys.argv[2]))
