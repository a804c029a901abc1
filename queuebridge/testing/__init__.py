"""Tests with real deliveries: the embedded server, and receivers, in the test's own process.

The fixtures of `queuebridge.testing.plugin` are there in every pytest run without further ado. Nothing is imported
or started before a test asks for one.
"""

from queuebridge.testing.bridge_receiver import BridgeReceiver
from queuebridge.testing.receiver import QStashReceiver, ReceivedRequest
from queuebridge.testing.server import QStashServer, RecordedDelivery

__all__ = ["BridgeReceiver", "QStashReceiver", "QStashServer", "ReceivedRequest", "RecordedDelivery"]
