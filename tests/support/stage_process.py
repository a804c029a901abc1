"""A process that goes by the stages in the ledger which its environment names.

Usage: stage_process.py KIND [fork]

Prints `NAME revision N stage S at T` for each change it sees, T in Unix seconds. With `fork` a forked child does so
too, under the name KIND-child. Ends at SIGTERM, saying farewell to the ledger.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from queuebridge.loading import load_ledger
from queuebridge.routing import RoutingSettings, create_source
from queuebridge.settings import Settings


def main() -> None:
    """Follow the stages."""
    kind, *options = sys.argv[1:]
    url = Settings.from_environment().ledger_url
    assert url is not None
    source = create_source(RoutingSettings.from_environment(), load_ledger(url.get_secret_value()), kind=kind)

    def end(_number: int, _frame: FrameType | None) -> None:
        source.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    source.settings()
    name = kind
    if "fork" in options and os.fork() == 0:
        name = f"{kind}-child"
    seen = -1
    while True:
        # As an enqueue would ask: for each job.
        revision, stage = source.revision(), source.settings().default.stage.value
        if revision != seen:
            print(f"{name} revision {revision} stage {stage} at {time.time()}", flush=True)
            seen = revision
        time.sleep(0.01)


if __name__ == "__main__":
    main()
