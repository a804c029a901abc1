"""The Celery app of the project. Two lines of it know of a bridge."""

import os

from celery import Celery

from queuebridge.backends.celery import attach

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

app = attach(Celery("proj"))
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
