"""A real RabbitMQ for tests."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from processes import free_port
from services import OwnServer, Service, binary

# Debian's command of this name insists on its own user and folders; the real one lies here.
_RABBIT_BIN = "/usr/lib/rabbitmq/bin"


class RabbitService(Service):
    """RabbitMQ; every test has a virtual host to itself, if we may make one.

    Of a server that `rabbitmqctl` on this machine does not control, the virtual host in the URL is used as it
    is: tests then share it, so it must be one that nobody else uses.
    """

    name = "RabbitMQ"
    variable = "QUEUEBRIDGE_TEST_RABBITMQ_URL"
    standard_urls = ("amqp://guest:guest@127.0.0.1:5672//",)

    def __init__(self, url: str, own: OwnServer | None = None, env: Mapping[str, str] | None = None) -> None:
        super().__init__(url, own)
        self._env = {**os.environ, **(env or {})}
        folder = _RABBIT_BIN if own else "/usr/sbin"
        self._ctl = shutil.which("rabbitmqctl", path=f"{folder}:{os.environ.get('PATH', '')}")
        self._shared = False

    @classmethod
    def problem(cls, url: str) -> str | None:
        import amqp

        place = urlsplit(url)
        try:
            with amqp.Connection(
                host=f"{place.hostname}:{place.port or 5672}",
                userid=unquote(place.username or "guest"),
                password=unquote(place.password or "guest"),
                virtual_host=unquote(place.path[1:]) or "/",
                connect_timeout=5,
            ):
                pass
        except (amqp.AMQPError, OSError) as error:
            return str(error) or type(error).__name__
        return None

    @classmethod
    def start(cls) -> RabbitService:
        program = binary("rabbitmq-server", folders=[_RABBIT_BIN])
        if Path(_RABBIT_BIN, "rabbitmq-server").exists():
            program = str(Path(_RABBIT_BIN, "rabbitmq-server"))
        own = OwnServer("rabbitmq")
        port, distribution, mapper = (str(free_port()) for _ in range(3))
        (own.folder / "plugins").write_text("[].\n")
        env = {
            "HOME": str(own.folder),
            "ERL_EPMD_PORT": mapper,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"queuebridge-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": port,
            "RABBITMQ_DIST_PORT": distribution,
            "RABBITMQ_CONFIG_FILE": str(own.folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(own.folder / "none.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(own.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(own.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(own.folder / "log"),
            "RABBITMQ_PID_FILE": str(own.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        own.start([program], env)
        url = f"amqp://guest:guest@127.0.0.1:{port}//"
        cls._await(own, url)
        return cls(url, own, env)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Give the URL of a virtual host that is removed afterwards."""
        name = f"queuebridge-test-{secrets.token_hex(4)}"
        place = urlsplit(self.url)
        url = place._replace(path=f"/{quote(name, safe='')}").geturl()
        user = unquote(place.username or "guest")
        made = (
            not self._shared
            and self._control("add_vhost", name)
            and self._control("set_permissions", "-p", name, user, ".*", ".*", ".*")
            and self.problem(url) is None
        )
        if not made:
            # Asked once: every refused attempt takes a second.
            self._shared = True
            yield self.url
            return
        try:
            yield url
        finally:
            self._control("delete_vhost", name)

    def stop(self) -> None:
        """Stop the server and its port mapper, if they were started here."""
        super().stop()
        if self.own is not None:
            mapper = shutil.which("epmd")
            if mapper:
                subprocess.run([mapper, "-kill"], env=self._env, capture_output=True, check=False, timeout=10)

    def _control(self, *args: str) -> bool:
        if self._ctl is None:
            return False
        done = subprocess.run([self._ctl, *args], env=self._env, capture_output=True, check=False, timeout=40)
        return done.returncode == 0
