"""How jobs get from an enqueue to the backends."""
