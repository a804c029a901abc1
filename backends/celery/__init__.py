"""The Celery backend: publish through a Celery app, and run jobs in its workers.

`Celery` and `attach` put a bridge below an existing application.
"""

from queuebridge.backends.celery.attach import Celery, attach
from queuebridge.backends.celery.backend import CeleryBackend
from queuebridge.backends.celery.worker import register_tasks

__all__ = ["Celery", "CeleryBackend", "attach", "register_tasks"]
