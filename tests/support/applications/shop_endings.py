"""Tasks of the shop that do not come to their end at once, and what can be done about that."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from celery.exceptions import Reject
from shop_celery import app, note


@app.task(name="shop.hold")
def hold(tag: str, gate: str) -> None:
    """Wait until a file is there."""
    note(f"hold {tag}")
    while not Path(gate).exists():
        time.sleep(0.02)
    note(f"released {tag}")


@app.task(name="shop.limited", time_limit=2)
def limited(tag: str, gate: str) -> None:
    """Wait likewise, for two seconds at most."""
    hold(tag, gate)


@app.task(name="shop.patient", bind=True)
def patient(self: Any, tag: str, times: int) -> str:
    """Want its message again, so many times."""
    note(f"patient {tag}", redelivered=self.request.delivery_info["redelivered"])
    if Path(os.environ["SHOP_EFFECTS"]).read_text().count(f'"patient {tag}"') <= times:
        raise Reject("not yet", requeue=True)
    return "at last"


@app.task(name="shop.dies")
def dies(tag: str) -> None:
    """Kill its process the first time."""
    first = f'"dies {tag}"' not in (Path(os.environ["SHOP_EFFECTS"]).read_text() if _any_effects() else "")
    note(f"dies {tag}")
    if first:
        os._exit(9)


def _any_effects() -> bool:
    return Path(os.environ["SHOP_EFFECTS"]).exists()


if __name__ == "__main__":
    # As `send shop.hold '["a", "/tmp/gate"]'`, `terminate ID`, `state ID`.
    command, name, *more = sys.argv[1:]
    if command == "send":
        print(app.send_task(name, json.loads(more[0])).id)
    elif command == "terminate":
        app.control.revoke(name, terminate=True)
    elif command == "state":
        print(app.AsyncResult(name).state)
