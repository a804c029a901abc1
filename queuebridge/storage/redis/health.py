"""What Redis says of itself, as far as the ledger depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from queuebridge.storage.redis.connection import Connection


def health_line(connection: Connection) -> str:
    """Reach Redis, and return one line about it, with a warning if it may lose what it keeps.

    What Redis does not let us ask is left out.
    """
    connection.use(lambda client: client.ping(), repeat=True)
    about = connection.use(_info, repeat=True)
    version = about.get("redis_version")
    line = f"Redis {version}" if version else "Redis"
    return "; ".join([f"{line} at {connection.address} answers", *_warnings(about)])


def _info(client: Any) -> Mapping[str, Any]:
    about: dict[str, Any] = {}
    try:
        about = {**client.info()}
        about |= client.config_get("save")
    except redis.ResponseError:
        pass  # some hosts forbid the one or the other
    return about


def _warnings(about: Mapping[str, Any]) -> list[str]:
    warnings = []
    policy = about.get("maxmemory_policy")
    if policy not in (None, "noeviction"):
        warnings.append(f"warning: maxmemory-policy is {policy}, so Redis may drop what it keeps; set noeviction")
    # Without CONFIG nothing says whether snapshots are on.
    if about.get("aof_enabled") == 0 and about.get("save") == "":
        warnings.append("warning: neither AOF nor snapshots are on, so a restart of Redis loses the ledger")
    elif about.get("aof_enabled") == 0:
        warnings.append("warning: AOF is off, so a restart of Redis loses what came after the last snapshot")
    return warnings
