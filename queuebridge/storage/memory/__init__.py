"""A ledger in the memory of one process: for tests and the simulation. It forgets everything with the process."""

from queuebridge.storage.memory.ledger import MemoryLedger, create_ledger

__all__ = ["MemoryLedger", "create_ledger"]
