"""Running the development server: in the foreground, inside a loop, or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.admin.attempts import Attempts
from queuebridge.backends.qstash.devserver.admin.resource import Admin
from queuebridge.backends.qstash.devserver.admin.travel import Traveller
from queuebridge.backends.qstash.devserver.app import App
from queuebridge.backends.qstash.devserver.clock import Clock
from queuebridge.backends.qstash.devserver.dispatcher import Dispatcher
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.messages import SigningKeys
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.request import Services
from queuebridge.backends.qstash.devserver.resolving import Resolution, Resolver
from queuebridge.backends.qstash.devserver.sender import Sender
from queuebridge.backends.qstash.devserver.settings import EngineSettings
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore
from queuebridge.backends.qstash.devserver.store import MemoryStore, Store
from queuebridge.backends.qstash.protocol import DEFAULT_REGION, DEV_PORT
from queuebridge.errors import ConfigurationError

logger = logging.getLogger(__name__)

_START_SECONDS: Final = 30.0
# Addresses that mean every interface: one can listen on them, but not portably connect to them.
_WILDCARDS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How to run the server.

    `port` 0 takes a free one. `db_path` None keeps everything in memory. `durable` makes a commit
    survive a power cut, not only the end of the process. `grace_seconds` is how long a stop waits
    for requests in flight. `resolve` sends deliveries for public hosts to local URLs.
    """

    host: str = "127.0.0.1"
    port: int = DEV_PORT
    db_path: Path | None = None
    durable: bool = True
    region: str = DEFAULT_REGION
    grace_seconds: float = 2.0
    resolve: tuple[Resolution, ...] = ()
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: for an impossible port, time scale or burst limit, or a host that is resolved twice.
        """
        if not 0 <= self.port <= 65_535:
            raise ConfigurationError(f"the server's port must be between 0 and 65535, not {self.port}")
        if not self.engine.time_scale > 0:
            raise ConfigurationError(f"the time scale must be above 0, not {self.engine.time_scale}")
        burst = self.engine.burst_per_second
        if burst is not None and burst < 1:
            raise ConfigurationError(f"the burst limit must be at least 1 request per second, not {burst}")
        Resolver(self.resolve)


class DevServer:
    """One server. `start` and `stop` belong to the same running loop; `stop` is idempotent."""

    def __init__(self, settings: ServerSettings | None = None) -> None:
        self.settings = settings or ServerSettings()
        self._stack = contextlib.AsyncExitStack()
        self._port = 0
        self._first_account: Account

    @property
    def base_url(self) -> str:
        """The URL clients on this machine use, with the port really taken; valid after `start`."""
        host = _WILDCARDS.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def signing_keys(self) -> SigningKeys:
        """The first user's keys, which may have been rotated in an earlier run; valid after `start`."""
        return self._first_account.keys

    async def start(self) -> None:
        """Open the store, take over what it holds, and listen.

        Raises:
            ConfigurationError: the database cannot be used.
            OSError: the address cannot be listened on.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        _warn_if_public(self.settings.host)
        logger.info("running at %s", self.base_url)

    async def stop(self) -> None:
        """Stop listening, let requests in flight end, write what is staged."""
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self.settings
        store: Store = MemoryStore()
        if settings.db_path is not None:
            store = SqliteStore(settings.db_path, durable=settings.durable)
        engine = Engine(Clock(), store, settings.engine)
        recovered = await store.load()
        self._stack.push_async_callback(store.close)
        recover(engine, recovered)
        self._first_account = engine.accounts[settings.engine.users[0].name]
        resolver = Resolver(settings.resolve) if settings.resolve else None
        sender = Sender(plan=settings.engine.plan, clock=time.time, region=settings.region, resolver=resolver)
        self._stack.push_async_callback(sender.close)
        attempts = Attempts(sender, engine.clock)
        dispatcher = Dispatcher(engine, attempts.attempt)
        self._stack.push_async_callback(dispatcher.stop, grace_seconds=settings.grace_seconds)
        admin = Admin(engine, attempts, Traveller(engine, dispatcher))
        protocol = App(Services(engine, dispatcher.wake), admin, host=settings.host).server()
        runner = web.ServerRunner(protocol, shutdown_timeout=settings.grace_seconds)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.host, settings.port).start()
        self._port = runner.addresses[0][1]
        dispatcher.start()


async def serve(
    settings: ServerSettings,
    *,
    stop: asyncio.Event | None = None,
    on_ready: Callable[[str], None] | None = None,
    on_keys: Callable[[str, str], None] | None = None,
) -> None:
    """Run a server until `stop` is set, or until SIGINT or SIGTERM when no event is given.

    Args:
        settings: how to run it.
        stop: set it, on this loop, to end the server; without it signal handlers are installed.
        on_ready: called once with the base URL when requests are answered.
        on_keys: called once, after `on_ready`, with the first user's current and next signing key.

    Raises:
        ConfigurationError: the database cannot be used.
        OSError: the address cannot be listened on.
    """
    server = DevServer(settings)
    stopping = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = () if stop is not None else (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stopping.set)
    try:
        await server.start()
        if on_ready is not None:
            on_ready(server.base_url)
        if on_keys is not None:
            on_keys(server.signing_keys.current, server.signing_keys.next)
        await stopping.wait()
        logger.info("stopping")
    finally:
        await server.stop()
        for number in signals:
            loop.remove_signal_handler(number)


def run(
    settings: ServerSettings,
    *,
    on_ready: Callable[[str], None] | None = None,
    on_keys: Callable[[str, str], None] | None = None,
) -> None:
    """Run a server in the foreground until SIGINT or SIGTERM; see `serve`."""
    asyncio.run(serve(settings, on_ready=on_ready, on_keys=on_keys))


@contextlib.contextmanager
def running_server(settings: ServerSettings | None = None) -> Iterator[str]:
    """Run a server in a thread of its own for the length of a `with` block; yields its base URL.

    The default settings take a free port and keep everything in memory.

    Raises:
        ConfigurationError, OSError: as `serve`.
    """
    chosen = settings or ServerSettings(port=0)
    ready = threading.Event()
    found: list[str] = []
    failure: list[BaseException] = []
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop))

        def on_ready(base_url: str) -> None:
            found.append(base_url)
            ready.set()

        await serve(chosen, stop=stop, on_ready=on_ready)

    def body() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=body, name="queuebridge-devserver", daemon=True)
    thread.start()
    try:
        if not ready.wait(_START_SECONDS):
            raise TimeoutError("the development server did not start in time")
        if failure:
            raise failure[0]
        yield found[0]
    finally:
        for loop, stop in handles:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(stop.set)
        thread.join(_START_SECONDS)


def _warn_if_public(host: str) -> None:
    local = host == "localhost"
    with contextlib.suppress(ValueError):
        local = local or ipaddress.ip_address(host).is_loopback
    if not local:
        logger.warning(
            "listening on %s: the tokens and signing keys of this server are published ones, so whoever reaches its "
            "port can read and send messages, also to addresses that only this machine reaches; --host 127.0.0.1 "
            "keeps others out",
            host or "all interfaces",
        )
