"""What a Celery app uses, and which of its tasks can move to push delivery: `queuebridge inventory`."""

from queuebridge.backends.celery.inventory.data import as_data
from queuebridge.backends.celery.inventory.facts import Seen, Surroundings
from queuebridge.backends.celery.inventory.taking import Inventory, take_inventory

__all__ = ["Inventory", "Seen", "Surroundings", "as_data", "take_inventory"]
