"""Child processes of a command end with it, whenever it is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from queuebridge import processes
from queuebridge.processes import Child, Processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_interruption_in_the_middle_of_a_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    def interrupted(name: str, process: subprocess.Popen[str], on_line: Any) -> Child:
        started.append(process)
        signal.raise_signal(signal.SIGINT)
        return Child(name, process, on_line)

    monkeypatch.setattr(processes, "Child", interrupted)

    with pytest.raises(KeyboardInterrupt), Processes(lambda *_: None) as children:
        children.start("sleep", SLEEP, env={})

    try:
        assert started[0].poll() is not None
    finally:
        started[0].kill()
        started[0].wait()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
