"""The implementations of the ledger, one package per store. They are loaded by name, when one is chosen."""
