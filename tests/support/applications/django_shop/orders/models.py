"""What the shop keeps."""

from django.db import models


class Order(models.Model):
    """An order, and how often it was charged."""

    name = models.CharField(max_length=50, unique=True)
    charged = models.IntegerField(default=0)
    # Of the process that did it.
    by = models.CharField(max_length=50, default="")

    def __str__(self) -> str:
        return self.name
