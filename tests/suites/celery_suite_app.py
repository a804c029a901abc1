"""The Celery app that receivers and idle workers of `celery_suite.py` use: the tasks of Celery's integration tests."""

from __future__ import annotations

import os
from typing import Any

from celery.contrib.testing.app import TestApp

from queuebridge.backends.celery import attach


def _make_app() -> Any:
    # As in t/integration/conftest.py, which imports pytest.
    made: Any = attach(
        TestApp(
            config={
                "broker_url": os.environ["TEST_BROKER"],
                "result_backend": os.environ["TEST_BACKEND"],
                "result_extended": True,
                "task_create_missing_queues": "CELERY_SUITE_IDLE" in os.environ,
            },
            enable_logging=True,
            set_as_current=True,
        )
    )
    made.set_default()
    made.loader.import_task_module("t.integration.tasks")
    from t.integration.tasks import ClassBasedAutoRetryTask

    made.register_task(ClassBasedAutoRetryTask)
    return made


app = _make_app()
