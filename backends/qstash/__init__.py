"""The QStash backend, the verification of its deliveries, and an embedded server for development."""
