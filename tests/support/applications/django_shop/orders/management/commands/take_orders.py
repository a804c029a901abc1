"""Take orders, in each of the ways in which a Django project calls its tasks."""

import json
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction
from orders.models import Order
from orders.tasks import charge


class Command(BaseCommand):
    """Takes four orders, gives one up, and waits for the results."""

    def handle(self, *_: Any, **__: Any) -> None:
        """Run the command."""
        results = [charge.delay(Order.objects.create(name="delay").pk)]
        with transaction.atomic():
            # It would not be found before the transaction has been committed.
            charge.delay_on_commit(Order.objects.create(name="delay_on_commit").pk)
            charge.apply_async_on_commit((Order.objects.create(name="apply_async_on_commit").pk,), countdown=0)
            last = Order.objects.create(name="on_commit")
            transaction.on_commit(lambda: results.append(charge.delay(last.pk)))
        with transaction.atomic():
            given_up = Order.objects.create(name="given up").pk
            transaction.on_commit(partial(charge.delay, given_up))
            charge.delay_on_commit(given_up)
            transaction.set_rollback(True)
        self.stdout.write(json.dumps([result.get(timeout=40) for result in results]))
