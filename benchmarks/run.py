"""Compare queuebridge with what a user would pick instead; see docs/benchmarks.md.

    python benchmarks/run.py [--rounds N] [--only PART] [--json]

Needs a Redis (REDIS_URL, else redis://127.0.0.1:6379/14, whose benchmark queues are deleted afterwards).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import celery
import jwt
import qstash
import redis
import rq
from benchmark_tasks import add_numbers
from measure import Row, medians, microseconds_each
from migration_rows import dual_rows, legacy_rows
from rq.serializers import JSONSerializer
from surroundings import CALLS, HERE, QUEUE, REDIS_URL, child, cleaned, free_port, listening

from queuebridge import Bridge
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER
from queuebridge.envelope import Envelope

BATCH = 100


def celery_rows(rounds: int) -> Iterator[Row]:
    """Compare enqueueing through Celery."""
    app = celery.Celery("plain", broker=REDIS_URL, set_as_current=False)
    app.conf.update(task_serializer="json", accept_content=["json"], task_ignore_result=True)
    plain_task = app.task(name="benchmark.add", shared=False)(add_numbers.function)
    bridge = Bridge("celery", environ={"CELERY_BROKER_URL": REDIS_URL})
    with cleaned(QUEUE, f"_kombu.binding.{QUEUE}"):
        ours, plain = medians(
            lambda: microseconds_each(lambda: bridge.enqueue(add_numbers, 1, b=2, note="x"), CALLS),
            lambda: microseconds_each(lambda: plain_task.apply_async((1,), {"b": 2, "note": "x"}, queue=QUEUE), CALLS),
            rounds=rounds,
        )
    yield Row("celery: enqueue / apply_async", ours, plain, "µs per job", 1.10)


def rq_rows(rounds: int) -> Iterator[Row]:
    """Compare enqueueing through RQ."""
    queue = rq.Queue(QUEUE, connection=redis.Redis.from_url(REDIS_URL), serializer=JSONSerializer)
    bridge = Bridge("rq", environ={"REDIS_URL": REDIS_URL})
    retry = rq.Retry(max=3, interval=[10, 20, 40])

    def enqueue_plain() -> object:
        arguments = {"b": 2, "note": "x"}
        return queue.enqueue_call("benchmark_tasks.add_numbers", (1,), arguments, retry=retry, result_ttl=60)

    with cleaned(jobs=queue):
        ours, plain = medians(
            lambda: microseconds_each(lambda: bridge.enqueue(add_numbers, 1, b=2, note="x"), CALLS),
            lambda: microseconds_each(enqueue_plain, CALLS),
            rounds=rounds,
        )
    yield Row("rq: enqueue / enqueue_call", ours, plain, "µs per job", 1.10)


def qstash_rows(rounds: int) -> Iterator[Row]:
    """Compare publishing to QStash, against a server that answers at once."""
    port = free_port()
    with child([sys.executable, str(HERE / "answering_server.py"), str(port)], lambda: listening(port)):
        url = f"http://127.0.0.1:{port}"
        bridge = Bridge(
            "qstash",
            environ={"QSTASH_URL": url, "QSTASH_TOKEN": "t", "QUEUEBRIDGE_PUBLIC_URL": "https://example.com"},
        )
        client = qstash.QStash("t", base_url=url)
        destination = "https://example.com/queuebridge/deliver"

        def publish_plain() -> object:
            # The same options as ours, because QStash needs them for the same service.
            return client.message.publish_json(
                url=destination,
                body={"task": "benchmark.add", "args": [1], "kwargs": {"b": 2, "note": "x"}},
                retries=3,
                deduplication_id=uuid.uuid4().hex,
                label="benchmark.add",
                failure_callback="https://example.com/queuebridge/failed",
            )

        def single() -> float:
            return microseconds_each(lambda: bridge.enqueue(add_numbers, 1, b=2, note="x"), CALLS)

        def batch() -> float:
            calls = [(add_numbers, (1, 2))] * BATCH
            return microseconds_each(lambda: bridge.enqueue_many(calls), 5) / BATCH

        ours, plain = medians(single, lambda: microseconds_each(publish_plain, CALLS), rounds=rounds)
        yield Row("qstash: enqueue / SDK publish_json", ours, plain, "µs per job", 1.00)
        ours, plain = medians(batch, lambda: microseconds_each(publish_plain, CALLS), rounds=rounds)
        yield Row(f"qstash: batch of {BATCH} / SDK publish_json", ours, plain, "µs per job", 1 / 15)
        ours, plain = medians(batch, single, rounds=rounds)
        yield Row(f"qstash: batch of {BATCH} / our own single enqueue", ours, plain, "µs per job", 1 / 15)


def receiver_rows(rounds: int) -> Iterator[Row]:
    """Compare deliveries per second, one gunicorn process each, one request in four connections at a time."""
    ports = (free_port(), free_port())
    user = DEFAULT_DEV_USER
    with contextlib.ExitStack() as stack:
        for port, application in zip(ports, ("bridge_app:create_app()", "bare_view:app"), strict=True):
            environment = {
                **os.environ,
                "QUEUEBRIDGE_BACKEND": "qstash",
                "QUEUEBRIDGE_TASKS": "benchmark_tasks",
                "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{port}",
                "QSTASH_TOKEN": user.token,
                "QSTASH_CURRENT_SIGNING_KEY": user.current_signing_key,
                "QSTASH_NEXT_SIGNING_KEY": user.next_signing_key,
                "PYTHONPATH": str(HERE),
            }
            command = [sys.executable, "-m", "gunicorn", application, "--bind", f"127.0.0.1:{port}"]
            command += ["--worker-class", "gthread", "--threads", "4", "--workers", "1", "--log-level", "warning"]
            stack.enter_context(child(command, lambda port=port: listening(port), environment))

        def deliveries(port: int) -> float:
            request = signed_request(port)
            load = [sys.executable, str(HERE / "load.py"), str(port), "1.5", "4"]
            return float(subprocess.run(load, input=request, capture_output=True, check=True).stdout)

        ours, plain = medians(lambda: deliveries(ports[0]), lambda: deliveries(ports[1]), rounds=rounds)
    yield Row("receiver / bare view with SDK verification", ours, plain, "deliveries/s", 0.85, more_is_better=True)


def cold_start_rows(rounds: int) -> Iterator[Row]:
    """Compare the import time of the receiver with that of the libraries it cannot do without."""

    def milliseconds(statement: str) -> float:
        code = f"import time; s = time.perf_counter(); {statement}; print((time.perf_counter() - s) * 1000)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=HERE)
        return float(run.stdout)

    receiver = "import bridge_app, queuebridge.backends.qstash.verification, queuebridge.backends.qstash.backend"
    ours, plain = medians(
        lambda: milliseconds(receiver), lambda: milliseconds("import flask, pydantic, jwt"), rounds=max(rounds, 9)
    )
    yield Row("cold start: receiver / flask + pydantic + jwt", ours, plain, "ms", 1.35)


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "celery": celery_rows,
    "rq": rq_rows,
    "qstash": qstash_rows,
    "receiver": receiver_rows,
    "cold-start": cold_start_rows,
    "legacy": legacy_rows,
    "dual": dual_rows,
}


def signed_request(port: int) -> bytes:
    """Return a whole HTTP request with a valid signature, as QStash would send it."""
    body = Envelope(
        job_id=str(uuid.uuid4()),
        dispatch_id=uuid.uuid4().hex,
        task="benchmark.add",
        args=[1],
        kwargs={"b": 2, "note": "x"},
        queue=QUEUE,
        enqueued_at_ms=int(time.time() * 1000),
    ).encode()
    url = f"http://127.0.0.1:{port}/queuebridge/deliver"
    digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()
    now = int(time.time())
    claims = {"iss": "Upstash", "sub": url, "iat": now, "nbf": now, "exp": now + 300, "jti": "jwt_x", "body": digest}
    token = jwt.encode(claims, DEFAULT_DEV_USER.current_signing_key, algorithm="HS256")
    head = (
        f"POST /queuebridge/deliver HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Upstash-Signature: {token}\r\nUpstash-Message-Id: msg_benchmark\r\nUpstash-Retried: 0\r\n"
        f"User-Agent: Upstash-QStash\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for part in options.only or PARTS for row in PARTS[part](options.rounds)]
    if options.json:
        print(json.dumps([{**row.__dict__, "ratio": row.ratio, "within_budget": row.within_budget} for row in rows]))
    else:
        print(f"{'comparison':<48} {'ours':>10} {'plain':>10} {'ratio':>7} {'budget':>7}")
        for row in rows:
            budget = f"{row.budget:.3g}" if row.budget is not None else "-"
            mark = "" if row.within_budget else "  over budget"
            print(f"{row.name:<48} {row.ours:>10.1f} {row.plain:>10.1f} {row.ratio:>7.3f} {budget:>7} {row.unit}{mark}")
    return 0 if all(row.within_budget for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
