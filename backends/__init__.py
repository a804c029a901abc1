"""Adapters: one module or package per backend. None imports another."""
