"""The ledger in Redis, each act one Lua script. Needs the extra `redis`, and Redis 6.2 or newer."""

from queuebridge.ledger import Ledger
from queuebridge.storage.redis.ledger import RedisLedger

__all__ = ["RedisLedger", "create_ledger"]


def create_ledger(url: str) -> Ledger:
    """Return the ledger at an address such as `redis://localhost:6379/0`; nothing is opened yet.

    Raises:
        ConfigurationError: It is not an address of Redis.
    """
    return RedisLedger.from_url(url)
