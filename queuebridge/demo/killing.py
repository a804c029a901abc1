"""End a process and all its descendants at once, and know which they were."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path

from queuebridge.demo.attribution import Killed


def kill_family(pid: int, *, since: float) -> list[Killed]:
    """Send SIGKILL to a process and its descendants, in whatever group or session they are, and return them.

    They are stopped first, so that none can start another one, or answer, between being found and being killed.

    Args:
        pid: The process.
        since: Before it was started, in Unix seconds.
    """
    stopped: set[int] = set()
    while found := _family(pid) - stopped:
        for member in found:
            _send(member, signal.SIGSTOP)
        stopped |= found
    for member in stopped:
        _send(member, signal.SIGKILL)
    until = time.time()
    return [Killed(pid=member, since=since, until=until) for member in stopped]


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _family(pid: int) -> set[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    family: set[int] = set()
    new = [pid]
    while new:
        member = new.pop()
        family.add(member)
        new += children[member]
    return family


def _parents() -> list[tuple[int, int]]:
    """Return each process with its parent."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)  # noqa: S607
        return [(int(child), int(parent)) for child, parent in (line.split() for line in listed.stdout.splitlines())]
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # The name of the program, in parentheses, may contain anything.
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found.append((int(folder.name), int(fields[1])))
    return found
