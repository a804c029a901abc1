"""An embedded, QStash-compatible HTTP server for development, tests and demonstrations."""

from __future__ import annotations

from queuebridge.backends.qstash.devserver.resolving import Resolution
from queuebridge.backends.qstash.devserver.server import (
    DevServer,
    ServerSettings,
    run,
    running_server,
    serve,
)
from queuebridge.backends.qstash.devserver.settings import EngineSettings

__all__ = ["DevServer", "EngineSettings", "Resolution", "ServerSettings", "run", "running_server", "serve"]
