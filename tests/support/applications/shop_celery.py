"""An existing Celery application. One line of it knows of a bridge: where `Celery` comes from."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

if os.environ.get("SHOP_PLAIN"):
    from celery import Celery
else:
    from queuebridge.backends.celery import Celery

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_RESULTS"])
app.conf.task_default_queue = "shop"
app.conf.task_acks_late = app.conf.task_reject_on_worker_lost = not os.environ.get("SHOP_ACKS_EARLY")
app.conf.broker_connection_retry_on_startup = True
if os.environ.get("SHOP_QUORUM"):
    # Delays are then the broker's business.
    app.conf.task_default_queue_type = "quorum"
    app.conf.task_default_exchange_type = "topic"
app.conf.broker_transport_options = {"visibility_timeout": 20} if os.environ["SHOP_BROKER"].startswith("redis") else {}


def note(effect: str, **more: object) -> None:
    """Append a line in one write, which another process cannot tear apart."""
    line = json.dumps({"effect": effect, "pid": os.getpid(), "at": time.time(), **more})
    with Path(os.environ["SHOP_EFFECTS"]).open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


@app.task(bind=True, max_retries=5)
def charge(self: Any, order: str) -> str:
    """Charge an order; every seventh one only at the second attempt."""
    if int(order.rpartition("-")[2]) % 7 == 0 and not self.request.retries:
        # A broker that counts delays counts whole seconds.
        raise self.retry(countdown=1 if os.environ.get("SHOP_QUORUM") else 0.1)
    note(f"charge {order}")
    return order


@app.task
def ship(order: str) -> str:
    """Ship what was charged."""
    note(f"ship {order}")
    return order


@app.task
def bill(orders: list[str]) -> None:
    """Write one bill for several orders."""
    note(f"bill {'+'.join(sorted(orders))}")
