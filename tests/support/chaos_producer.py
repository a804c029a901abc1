"""Enqueue jobs until stopped, and note each that was accepted.

Usage: chaos_producer.py NAME SEED PER_SECOND RECEIPTS

RECEIPTS gets a line for each job, as soon as its enqueue has returned. A refused job is noted too, without an id.
"""

from __future__ import annotations

import random
import signal
import sys
import time

from chaos_tasks import append

from queuebridge import Bridge, QueueBridgeError

# Seconds before the effect. A long job is still running when its safety copy arrives.
SHORT, LONG = (0, 0.05), (1.5, 3.5)
LONG_SHARE = 0.04


def main() -> None:
    """Produce."""
    name, seed, per_second, receipts = sys.argv[1:]
    chance = random.Random(int(seed))
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    with Bridge() as bridge:
        bridge.load_tasks()
        print("ready", flush=True)
        number = 0
        while running:
            number += 1
            tag = f"{name}-{number}"
            before = chance.uniform(*LONG if chance.random() < LONG_SHARE else SHORT)
            try:
                receipt = bridge.enqueue("chaos.work", tag, before, chance.uniform(0, 0.1))
            except QueueBridgeError as error:
                append(receipts, {"tag": tag, "refused": f"{type(error).__name__}: {error}"})
            else:
                append(receipts, {"tag": tag, "dispatch_id": receipt.dispatch_id, "stage": receipt.stage})
            time.sleep(chance.expovariate(float(per_second)))


if __name__ == "__main__":
    main()
