"""Show what became of the orders."""

import json
from typing import Any

from django.core.management.base import BaseCommand
from orders.models import Order


class Command(BaseCommand):
    """Prints every order, how often it was charged, and by which program."""

    def handle(self, *_: Any, **__: Any) -> None:
        """Run the command."""
        self.stdout.write(json.dumps({one.name: [one.charged, one.by] for one in Order.objects.all()}))
