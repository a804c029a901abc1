"""What a migration costs at enqueue."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import celery
import redis
import rq
from benchmark_tasks import add_numbers
from measure import Row, medians, microseconds_each
from rq.serializers import JSONSerializer
from surroundings import CALLS, HERE, QUEUE, REDIS_URL, child, cleaned, environment, free_port, listening

from queuebridge import Bridge
from queuebridge.backends.celery import Celery
from queuebridge.backends.rq import Queue

# A publish to QStash goes over the internet; a server that answers at once would compare two amounts of computing,
# which one thread has to do one after the other.
INTERNET_MS = 20
_PUSH = {"QSTASH_TOKEN": "t", "QUEUEBRIDGE_PUBLIC_URL": "https://example.com", "QSTASH_URL": "http://127.0.0.1:9"}


def enqueue(bridge: Bridge) -> Callable[[], object]:
    """Return a call that enqueues one job."""
    return lambda: bridge.enqueue(add_numbers, 1, b=2, note="x")


def legacy_rows(rounds: int) -> Iterator[Row]:
    """Compare stage `legacy` with the library alone."""
    app = celery.Celery("plain", broker=REDIS_URL, set_as_current=False)
    app.conf.update(task_serializer="json", accept_content=["json"], task_ignore_result=True)
    plain_task = app.task(name="benchmark.add", shared=False)(add_numbers.function)
    bridge = Bridge(environ={**_PUSH, "QUEUEBRIDGE_LEGACY": "celery", "CELERY_BROKER_URL": REDIS_URL})
    with cleaned(QUEUE, f"_kombu.binding.{QUEUE}"):
        ours, plain = medians(
            lambda: microseconds_each(enqueue(bridge), CALLS),
            lambda: microseconds_each(lambda: plain_task.apply_async((1,), {"b": 2, "note": "x"}, queue=QUEUE), CALLS),
            rounds=rounds,
        )
    yield Row("celery: stage legacy / apply_async", ours, plain, "µs per job", 1.10)
    queue = rq.Queue(QUEUE, connection=redis.Redis.from_url(REDIS_URL), serializer=JSONSerializer)
    bridge = Bridge(environ={**_PUSH, "QUEUEBRIDGE_LEGACY": "rq", "REDIS_URL": REDIS_URL})
    retry = rq.Retry(max=3, interval=[10, 20, 40])

    def enqueue_plain() -> object:
        arguments = {"b": 2, "note": "x"}
        return queue.enqueue_call("benchmark_tasks.add_numbers", (1,), arguments, retry=retry, result_ttl=60)

    with cleaned(jobs=queue):
        ours, plain = medians(
            lambda: microseconds_each(enqueue(bridge), CALLS),
            lambda: microseconds_each(enqueue_plain, CALLS),
            rounds=rounds,
        )
    yield Row("rq: stage legacy / enqueue_call", ours, plain, "µs per job", 1.10)
    yield bridged_app_row(rounds)
    yield drop_in_row(rounds)


def bridged_app_row(rounds: int) -> Row:
    """Compare an app with a bridge below it in stage `legacy` with one without, called in the same way."""

    def calls(kind: type[celery.Celery]) -> Callable[[], object]:
        app = kind("shop", broker=REDIS_URL, set_as_current=False)
        app.conf.task_ignore_result = True
        task = app.task(name="benchmark.add", shared=False)(add_numbers.function)
        return lambda: task.apply_async((1,), {"b": 2, "note": "x"}, queue=QUEUE)

    chosen = {**_PUSH, "QUEUEBRIDGE_LEGACY": "celery", "QUEUEBRIDGE_STAGE": "legacy", "CELERY_BROKER_URL": REDIS_URL}
    with environment(chosen), cleaned(QUEUE, f"_kombu.binding.{QUEUE}"):
        bridged, unbridged = calls(Celery), calls(celery.Celery)
        ours, plain = medians(
            lambda: microseconds_each(bridged, CALLS),
            lambda: microseconds_each(unbridged, CALLS),
            rounds=rounds,
        )
    return Row("celery: bridged app in stage legacy / apply_async", ours, plain, "µs per job", 1.05)


def drop_in_row(rounds: int) -> Row:
    """Compare our queue in stage `legacy` with RQ's own, both called as an existing program does."""
    connection = redis.Redis.from_url(REDIS_URL)
    plain_queue, queue = rq.Queue(QUEUE, connection=connection), Queue(QUEUE, connection=connection)

    def enqueue_on(chosen: rq.Queue) -> Callable[[], object]:
        return lambda: chosen.enqueue("benchmark_tasks.add_numbers", 1, b=2, note="x")

    chosen = {**_PUSH, "QUEUEBRIDGE_LEGACY": "rq", "QUEUEBRIDGE_STAGE": "legacy", "REDIS_URL": REDIS_URL}
    # The queue asks the process's environment, and then the process's bridge.
    with environment(chosen), Bridge().activate(), cleaned(jobs=plain_queue):
        ours, plain = medians(
            lambda: microseconds_each(enqueue_on(queue), CALLS),
            lambda: microseconds_each(enqueue_on(plain_queue), CALLS),
            rounds=rounds,
        )
    return Row("rq: drop-in Queue in stage legacy / rq.Queue", ours, plain, "µs per job", 1.05)


def dual_rows(rounds: int) -> Iterator[Row]:
    """Compare stages that write to both sides with the slower of the two writes alone, which is QStash."""
    port = free_port()
    server = [sys.executable, str(HERE / "answering_server.py"), str(port), str(INTERNET_MS)]
    environment = {
        **_PUSH,
        "QSTASH_URL": f"http://127.0.0.1:{port}",
        "CELERY_BROKER_URL": REDIS_URL,
        "QUEUEBRIDGE_LEDGER": REDIS_URL,
        "QUEUEBRIDGE_LEGACY": "celery",
    }
    single = Bridge("qstash", environ={**_PUSH, "QSTASH_URL": f"http://127.0.0.1:{port}"})
    with child(server, lambda: listening(port)), cleaned(QUEUE, f"_kombu.binding.{QUEUE}", "{queuebridge}:*"):
        for stage in ("dual", "live"):
            bridge = Bridge(environ={**environment, "QUEUEBRIDGE_STAGE": stage})
            ours, plain = medians(
                lambda bridge=bridge: microseconds_each(enqueue(bridge), CALLS // 4),
                lambda: microseconds_each(enqueue(single), CALLS // 4),
                rounds=rounds,
            )
            yield Row(f"stage {stage} / the slower single write", ours, plain, "µs per job", 1.25)
