"""The names of all keys of the ledger in Redis.

All begin with one prefix. Its part in braces is a hash tag, which keeps all keys in one slot of a cluster: scripts
find out by themselves which dispatches they touch, so one node of the cluster holds the whole ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PREFIX = "{queuebridge}:"

# Name in the scripts -> what follows the prefix. Names that end with a colon are followed by an id.
_NAMES = {
    "DISPATCH": "dispatch:",  # hash: everything about a dispatch
    "DELIVERIES": "deliveries:",  # list: the last deliveries of a dispatch
    "JOB": "job:",  # sorted set: the dispatches of a job, by time of acceptance
    "ACCEPTED": "accepted",  # sorted set: all dispatches by time of acceptance, in microseconds
    "ACCEPTED_BY_TASK": "accepted:",  # the same for one task
    "NOT_DONE": "not-done",  # those of all dispatches that are not done, so that the others are found among millions
    "NEXT_CHECK": "next-check",  # sorted set: unsettled dispatches by when reconcile looks at them
    "HELD": "held",  # sorted set: unsettled dispatches with a held copy, by when it is due
    "SETTLED": "settled",  # sorted set: settled dispatches by when they ended, for the purge
    "PAYLOAD": "payload:",  # string: a body kept for a transport
    "PAYLOAD_UNTIL": "payload-until",  # sorted set: kept bodies by when they may go
    "REVISIONS": "revisions",  # list: the revisions of the stage settings
    "PROCESSES": "processes",  # hash: what each process said last
    "PROCESS_SEEN": "process-seen",  # sorted set: processes by when they said so
}


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys below one prefix."""

    prefix: str = DEFAULT_PREFIX

    def of(self, name: str, suffix: str = "") -> str:
        """Return one key; `name` is that in the scripts."""
        return f"{self.prefix}{_NAMES[name]}{suffix}"


def keys_in_lua() -> str:
    """Return the declarations for the scripts, which find the prefix in KEYS[1]."""
    return "\n".join(f"local {name} = KEYS[1] .. '{suffix}'" for name, suffix in _NAMES.items())
