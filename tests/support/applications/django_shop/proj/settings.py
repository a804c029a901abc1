"""Settings of the project."""

import os

SECRET_KEY = "not a secret"
INSTALLED_APPS = ["orders"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["SHOP_DATABASE"]}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

CELERY_BROKER_URL = os.environ["SHOP_BROKER"]
CELERY_RESULT_BACKEND = os.environ["SHOP_RESULTS"]
CELERY_TASK_DEFAULT_QUEUE = "django"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
