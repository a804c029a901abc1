"""The world that a demo brings along: a queue of its own, processes, and the environment that they share."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from queuebridge.demo.broker import Broker
from queuebridge.errors import QueueBridgeError
from queuebridge.loading import import_optional
from queuebridge.processes import Child, Processes, command_line, free_port

READY_SECONDS = 30
# What a worker says when it takes jobs: Celery's, then RQ's.
WORKER_READY = r"ready\.|Listening on"
# The user's own settings must not reach the demo's processes.
_FOREIGN = ("QUEUEBRIDGE_", "QSTASH_", "CELERY_", "RQ_")


def new_queue() -> str:
    """Return the name of a queue that nobody else uses."""
    return f"queuebridge-demo-{secrets.token_hex(4)}"


def cleaned(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the user's environment without what would reach the demo's processes and is not meant for them."""
    return {name: value for name, value in environ.items() if not name.startswith(_FOREIGN) and name != "REDIS_URL"}


@dataclass(kw_only=True)
class World:
    """What all processes of a demo have in common.

    Attributes:
        processes: Where they belong.
        folder: Where they run, and keep their files.
        queue: The queue of all jobs.
        broker: The Redis of the legacy backends; None if there is none.
        base: The user's environment without settings of queuebridge.
    """

    processes: Processes
    folder: Path
    queue: str = field(default_factory=new_queue)
    broker: Broker | None
    base: Mapping[str, str]

    @property
    def redis_url(self) -> str:
        """Return the address of the broker.

        Raises:
            QueueBridgeError: There is none.
        """
        if self.broker is None:
            raise QueueBridgeError("No broker was prepared for this backend.")
        return self.broker.url

    @property
    def database(self) -> Path:
        """Return the file in which the embedded server keeps its messages."""
        return self.folder / "qstash.db"

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of a process."""
        return {
            **self.base,
            "QUEUEBRIDGE_ENV": "development",
            "QUEUEBRIDGE_TASKS": "queuebridge.demo.tasks",
            "QUEUEBRIDGE_DEFAULT_QUEUE": self.queue,
            **variables,
        }

    def start(self, name: str, environment: Mapping[str, str], *arguments: str) -> Child:
        """Start a command of queuebridge."""
        return self.processes.start(name, command_line(*arguments), env=environment, cwd=self.folder)


@dataclass(frozen=True, kw_only=True)
class PushPorts:
    """Where the embedded server and the receiver listen."""

    server: int = field(default_factory=free_port)
    receiver: int = field(default_factory=free_port)

    def variables(self) -> dict[str, str]:
        """Return what producers and receivers need to know."""
        user = import_optional("queuebridge.backends.qstash.protocol", feature="The demo").DEFAULT_DEV_USER
        return {
            "QSTASH_URL": f"http://127.0.0.1:{self.server}",
            "QSTASH_TOKEN": user.token,
            "QSTASH_CURRENT_SIGNING_KEY": user.current_signing_key,
            "QSTASH_NEXT_SIGNING_KEY": user.next_signing_key,
            "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{self.receiver}",
        }


def start_server(world: World, environment: Mapping[str, str], ports: PushPorts, *options: str) -> Child:
    """Start the embedded server."""
    return world.start(
        "server", environment, "devserver", "--port", str(ports.server), "--db", str(world.database), *options
    )


def wait_for_server(server: Child, ports: PushPorts) -> None:
    """Wait until the embedded server takes messages. Raises ProcessFailed."""
    server.wait_for_url(f"http://127.0.0.1:{ports.server}/v2/keys", READY_SECONDS)


def start_receiver(world: World, environment: Mapping[str, str], ports: PushPorts) -> Child:
    """Start the receiver."""
    return world.start("receiver", environment, "receiver", "--port", str(ports.receiver))


def wait_for_receiver(receiver: Child, ports: PushPorts) -> None:
    """Wait until the receiver answers. Raises ProcessFailed."""
    receiver.wait_for_url(f"http://127.0.0.1:{ports.receiver}/queuebridge/health", READY_SECONDS)
