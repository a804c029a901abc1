"""The Celery backend: publish through a Celery app, and run jobs in its workers."""

from queuebridge.backends.celery.backend import CeleryBackend
from queuebridge.backends.celery.worker import register_tasks

__all__ = ["CeleryBackend", "register_tasks"]
