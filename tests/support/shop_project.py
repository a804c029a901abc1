"""A Celery project as one finds them, written to a folder: a Django-like layout, many features, a broken file."""

from __future__ import annotations

import textwrap
from pathlib import Path

FILES = {
    "proj/__init__.py": """
        from proj.celery import app as celery_app

        __all__ = ["celery_app"]
    """,
    "proj/celery.py": """
        from celery import Celery
        from celery.schedules import crontab
        from kombu import Exchange, Queue
        from kombu.common import Broadcast

        app = Celery("proj", broker="redis://:hunter2@broker.internal:6379/0", backend="redis://:hunter2@results:6379/1")
        app.conf.update(
            accept_content=["json", "pickle"],
            task_default_queue="default",
            task_queues=[
                Queue("default"),
                Queue("bulk", queue_arguments={"x-max-priority": 10}),
                Queue("ordered", queue_arguments={"x-single-active-consumer": True}),
                Broadcast("everybody"),
                Queue("partner", Exchange("partner", type="topic"), routing_key="partner.#"),
            ],
            task_routes={
                "shop.tasks.export": {"queue": "bulk", "priority": 3},
                "shop.tasks.reload_prices": {"queue": "everybody"},
            },
            beat_schedule={
                "nightly": {"task": "shop.tasks.export", "schedule": crontab(hour=3, minute=0),
                            "options": {"expires": 60, "headers": {"key": "hunter2"}}},
                "gone": {"task": "shop.tasks.removed", "schedule": 60.0},
            },
            worker_max_tasks_per_child=100,
        )
        app.autodiscover_tasks(["shop", "mail"])
    """,
    "proj/signals.py": """
        from celery.signals import task_prerun, task_revoked, worker_process_init

        from proj.celery import app


        @worker_process_init.connect
        def connect_database(**kwargs):
            pass


        @task_prerun.connect
        def begin(**kwargs):
            pass


        @task_revoked.connect
        def count(**kwargs):
            pass


        def stop(task_id):
            app.control.revoke(task_id, terminate=True)
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        import enum

        from pydantic import BaseModel


        class Address(BaseModel):
            street: str


        class Order:
            def __init__(self, number: int) -> None:
                self.number = number


        class Size(str, enum.Enum):
            SMALL = "small"
    """,
    "shop/tasks.py": """
        import subprocess
        from datetime import date

        from celery import Task, chord, group, shared_task
        from celery.exceptions import Reject, SoftTimeLimitExceeded

        from shop.models import Address, Order, Size

        CACHE = {}
        DAY = 24 * 60 * 60


        class WithDatabase(Task):
            _session = None


        @shared_task
        def price(product_id: int, day: date | None = None, size: "Size" = Size.SMALL) -> int:
            return product_id


        @shared_task(serializer="pickle")
        def ship(order: "Order"):
            return order.number


        @shared_task(base=WithDatabase, bind=True, autoretry_for=(OSError,), max_retries=None, rate_limit="10/m")
        def charge(self, order_id: int, tags: set[str] = frozenset()):
            if order_id < 0:
                raise Reject("no such order", requeue=False)
            if self.request.hostname.startswith("canary"):
                raise self.retry(countdown=10)
            CACHE[order_id] = True


        @shared_task(time_limit=7200, soft_time_limit=3600)
        def export():
            try:
                subprocess.run(["pg_dump"], check=True)
            except SoftTimeLimitExceeded:
                pass


        @shared_task
        def reload_prices():
            CACHE.clear()


        @shared_task
        def total(prices):
            return sum(prices)


        @shared_task
        def order_total(product_ids: list[int]):
            header = [price.s(product) for product in product_ids]
            return chord(header)(total.s()).get(timeout=10)


        @shared_task(pydantic=True, bind=True, acks_late=True, autoretry_for=(KeyError,))
        def deliver(self, address: Address) -> None:
            return None


        @shared_task(acks_late=True, ignore_result=True)
        def ping(text: str = "") -> None:
            return None


        def price_all(product_ids):
            return group(price.s(one) for one in product_ids).apply_async(priority=9)
    """,
    "shop/views.py": """
        from datetime import datetime, timedelta

        import shop.tasks as jobs
        from celery import chain, current_app, signature
        from shop.tasks import DAY, price
        from mail.tasks import send as send_mail


        def buy(request, order, handler):
            jobs.ship.delay(order)
            jobs.charge.apply_async((order.number,), {"tags": {"new"}}, countdown=10 * DAY, compression="gzip")
            result = price.delay(1)
            send_mail.apply_async(["hunter2"], headers={"key": "hunter2"}, eta=datetime.utcnow() + timedelta(hours=2))
            current_app.send_task("mail.send", args=["b@example.com"], routing_key="partner.mail", exchange="partner")
            handler.delay(order)
            getattr(jobs, request.name).delay()
            signature("shop.tasks.removed").delay()
            current_app.send_task(request.name)
            workflow = chain(price.s(1), jobs.total.s())
            workflow.link_error(send_mail.si("ops@example.com"))
            workflow.apply_async(**request.options)
            return result.get(timeout=3)


        def cancel(task_id):
            jobs.export.AsyncResult(task_id).revoke(terminate=True)
    """,
    "shop/broken.py": """
        from shop.tasks import price

        def half_finished(:
            price.delay(1, priority=9)
    """,
    "shop/forgotten.py": """
        from celery import shared_task


        @shared_task
        def forgotten():
            raise AssertionError("imported: the source may only be read")


        raise AssertionError("imported: the source may only be read")
    """,
    "shop/templates/app/tasks.py": "{{ not python }}",
    "mail/__init__.py": "",
    "mail/tasks.py": """
        from proj.celery import app


        @app.task(name="mail.send", acks_late=True, soft_time_limit=30, ignore_result=True)
        def send(address: str) -> None:
            with open("/tmp/outbox", "a") as outbox:
                outbox.write(address)


        class Digest(app.Task):
            name = "mail.digest"
            queue_hint = "bulk"

            def run(self, addresses: list[str]) -> None:
                for address in addresses:
                    send.delay(address)


        digest = app.register_task(Digest())
        print("mail is loaded")
    """,
    "tools/resend.py": """
        from mail.tasks import send

        raise AssertionError("imported: the source may only be read")

        send.apply_async(["c@example.com"], serializer="yaml")
    """,
}

_IN_SHOP = ("charge", "deliver", "export", "order_total", "ping", "price", "reload_prices", "ship", "total")
TASKS = ["mail.digest", "mail.send", *(f"shop.tasks.{name}" for name in _IN_SHOP)]


def write_project(folder: Path) -> Path:
    """Write the project into a folder and return the folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return folder


def line_of(file: str, text: str) -> str:
    """Return the place of the line of a file that has a text in it, as the inventory shows it."""
    lines = textwrap.dedent(FILES[file]).lstrip().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if text in line]
    return f"{file}:{number}"
