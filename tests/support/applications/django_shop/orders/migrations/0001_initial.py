"""The first table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Made by `makemigrations`."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=50, unique=True)),
                ("charged", models.IntegerField(default=0)),
                ("by", models.CharField(default="", max_length=50)),
            ],
        ),
    )
