"""A process that uses a ledger which other processes use at the same time.

Usage: ledger_process.py ADDRESS OFFSET_MS GATE COMMAND [ID ...]

It says `ready`, waits until the file GATE exists, works, and prints one JSON object.

    claim ID ...   claims each of them, in this order: {"granted": [ids]}
    drain          takes what is due until there is no more: {"taken": [ids], "epochs": [numbers]}
    hold ID        claims it and never ends: {"token": number}
    fork ID ...    claims each of them in a forked child and in itself at once, over the same ledger object:
                   {"granted": [ids], "exit": status of the child, "granted_to_child": [ids]}
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from ledgers import GRACE, LEASE, Address, Offset, claim_request, new_dispatch
from processes import wait_until

from queuebridge.ledger import Granted, Ledger


def claim(ledger: Ledger, ids: list[str]) -> list[str]:
    """Claim dispatches and return those that were granted."""
    return [dispatch_id for dispatch_id in ids if token_of(ledger, dispatch_id) is not None]


def token_of(ledger: Ledger, dispatch_id: str) -> int | None:
    """Claim a dispatch and return the token; None if it was not granted."""
    request = claim_request(new_dispatch(dispatch_id=dispatch_id), owner=f"process {os.getpid()}")
    answer = ledger.claim(request, grace_ms=GRACE)
    return answer.token if isinstance(answer, Granted) else None


def drain(ledger: Ledger) -> dict[str, Any]:
    """Take what is due, a few at a time, until there is no more."""
    taken, epochs = [], []
    while batch := ledger.take_due(3, lease_ms=LEASE):
        taken += [due.execution.dispatch_id for due in batch]
        epochs += [due.epoch for due in batch]
    return {"taken": taken, "epochs": epochs}


def fork(ledger: Ledger, ids: list[str]) -> dict[str, Any]:
    """Claim dispatches here and in a forked child, over connections that were open before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, json.dumps(claim(ledger, ids)).encode())
            status = 0
        finally:
            os._exit(status)
    granted = claim(ledger, ids)
    _, status = os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    return {"granted": granted, "exit": status, "granted_to_child": json.loads(answer or "[]")}


def main() -> None:
    """Do what the command line says."""
    address, offset, gate, command, *ids = sys.argv[1:]
    ledger = Address.from_json(address).open(Offset(int(offset)))
    ledger.ping()
    print("ready")
    wait_until(Path(gate).exists, 50, what="the gate")
    if command == "claim":
        print(json.dumps({"granted": claim(ledger, ids)}))
    elif command == "drain":
        print(json.dumps(drain(ledger)))
    elif command == "fork":
        print(json.dumps(fork(ledger, ids)))
    else:
        print(json.dumps({"token": token_of(ledger, ids[0])}))
        threading.Event().wait()
    ledger.close()


if __name__ == "__main__":
    main()
